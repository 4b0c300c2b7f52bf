"""``report.html``, the page of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.intervals import image_intervals
from mixmo.evaluation.predictions import Predictions
from mixmo.evaluation.results import EvaluationResult, class_metrics
from mixmo.files import write_text
from mixmo.metrics.samples import Samples, per_sample
from mixmo.reporting.headline import metric_cards, summarise_run
from mixmo.reporting.page import Section, render
from mixmo.reporting.pictures import images_section
from mixmo.reporting.sections import (
    class_section,
    confidence_section,
    corruption_section,
    curves_sections,
    member_sections,
    metrics_section,
    ood_sections,
    reproduce_section,
)
from mixmo.reporting.tables import accuracies, class_table, corruption_table, sets_tables, temperature_uncertainty

MOST_LINES = 6
"""Largest number of members that are plotted separately."""
INTERVALS = (
    "In brackets: 95 % intervals over test images, for metrics whose intervals reach that coverage. Open a card for "
    "the meaning of its metric."
)
CURVES = "Training loss and accuracy are measured on mixtures, which are harder than test images."


def write_report(trained: TrainedRun, result: EvaluationResult) -> Path:
    """Write ``report.html`` into a run's folder and return its path."""
    return write_text(trained.path / "report.html", run_page(trained, result))


def run_page(trained: TrainedRun, result: EvaluationResult) -> str:
    """Return the HTML page of a run."""
    run, predictions, metrics = trained.folder, result.predictions, result.metrics
    intervals, several, config = image_intervals(predictions), bool(metrics.diversity), run.trained_config()
    columns = {"Logit average": result.flat()}
    if several:
        columns |= {"Probability average": metrics.probability_average}
        columns |= {f"Member {index}": values for index, values in enumerate(metrics.members)}
    cards = metric_cards(metrics.average | metrics.diversity, intervals)
    sections = [
        Section(cards=cards, notes=[INTERVALS] if intervals else []),
        *_class_sections(trained, result),
        *curves_sections({"run": run}, CURVES if config["model"]["num_members"] > 1 else ""),
    ]
    if result.corruptions is not None:
        names = enumerate(average_and_members(predictions))
        lines = {name: accuracies(result, f"member_{index - 1}" if index else "") for index, name in names}
        sections.append(corruption_section(lines, corruption_table(result.corruptions)))
    epochs = "1 epoch" if predictions.epochs == 1 else f"{predictions.epochs} epochs"
    best = ": the best checkpoint on the validation set" if trained.checkpoint == "best" else ""
    about = f"Trained for {epochs} with seed {config['seed']}{best}."
    sections += [
        *ood_sections({"the members together" if several else "the network": result}),
        *member_sections({"ensemble" if several else "network": result}),
        metrics_section(columns),
        reproduce_section([run], [about]),
    ]
    return render(f"Run {run.path.name}", summarise_run(trained, result, intervals), sections)


def _class_sections(trained: TrainedRun, result: EvaluationResult) -> list[Section]:
    """Return the sections on confidence, on confused classes, and on notable images; multi-label, only on classes."""
    predictions = result.predictions
    if predictions.multi_label:
        return [Section("Classes", tables=[class_table(class_metrics(predictions))])]
    (name, average), *members = (parts := average_and_members(predictions)).items()
    notes = [text] if (text := temperature_uncertainty(result.scaled)) else []
    return [
        replace(confidence_section({name: average}, parts), tables=sets_tables(result.sets), notes=notes),
        class_section(predictions, average, result.per_class),
        images_section(
            trained.data, {"Most confident mistakes": average}, predictions, dict(members) or parts,
            "Images on which members disagree most",
        ),
    ]  # fmt: skip


def average_and_members(predictions: Predictions) -> dict[str, Samples]:
    """Return the predictions of the logit average and, if members are few, of each member, by name."""
    members = predictions.logits.unbind(1)
    if len(members) == 1:
        return {"network": predictions.average()}
    samples = {"ensemble": predictions.average()}
    for index, logits in enumerate(members if len(members) <= MOST_LINES else ()):
        samples[f"member {index}"] = per_sample(logits, predictions.targets)
    return samples
