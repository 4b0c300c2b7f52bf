"""``report.html``: the page of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.intervals import image_intervals
from mixmo.evaluation.predictions import Predictions
from mixmo.evaluation.results import EvaluationResult, class_metrics
from mixmo.files import write_text
from mixmo.metrics.samples import Samples, per_sample
from mixmo.reporting.headline import cards, run_sentence
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
from mixmo.reporting.tables import accuracies, class_table, corruption_table, sets_tables, temperature_doubt

LINES = 6
"""Members up to which each has a line of its own in plots."""
INTERVALS = (
    "In brackets: 95 % intervals over test images, for metrics whose intervals reach that coverage. Open a card to "
    "read what it means."
)
CURVES = "Training loss and accuracy are those of the mixtures, which are harder than test images."


def write_report(trained: TrainedRun, result: EvaluationResult) -> Path:
    """Write ``report.html`` into a run's folder and return its path."""
    return write_text(trained.path / "report.html", run_page(trained, result))


def run_page(trained: TrainedRun, result: EvaluationResult) -> str:
    """Return the page of a run."""
    run, tested, metrics = trained.folder, result.predictions, result.metrics
    ranges, several, config = image_intervals(tested), bool(metrics.diversity), run.trained_config()
    columns = {"Logit average": result.flat()}
    if several:
        columns |= {"Probability average": metrics.probability_average}
        columns |= {f"Member {index}": values for index, values in enumerate(metrics.members)}
    by_label = [Section("Classes", tables=[class_table(class_metrics(tested))])] if tested.multi_label else []
    sections = [
        Section(cards=cards(metrics.average | metrics.diversity, ranges), notes=[INTERVALS] if ranges else []),
        *(by_label or _class_sections(trained, result)),
        *curves_sections({"run": run}, CURVES if config["model"]["num_members"] > 1 else ""),
    ]
    if result.corruptions is not None:
        who = {part: "" if index == 0 else f"member_{index - 1}" for index, part in enumerate(networks(tested))}
        lines = {part: accuracies(result, prefix) for part, prefix in who.items()}
        sections.append(corruption_section(lines, corruption_table(result.corruptions)))
    about = f"Trained for {tested.epochs} epochs with seed {config['seed']}."
    sections += [
        *ood_sections({"the members together" if several else "the network": result}),
        *member_sections({"ensemble" if several else "network": result}),
        metrics_section(columns),
        reproduce_section([run], [about]),
    ]
    return render(f"Run {run.path.name}", run_sentence(trained, result, ranges), sections)


def _class_sections(trained: TrainedRun, result: EvaluationResult) -> list[Section]:
    """Return the sections on confidence, on confused classes, and with notable images."""
    tested, parts = result.predictions, networks(result.predictions)
    (name, average), *members = parts.items()
    doubts = [doubt] if (doubt := temperature_doubt(result.scaled)) else []
    return [
        replace(confidence_section({name: average}, parts), tables=sets_tables(result.sets), notes=doubts),
        class_section(tested, average, result.per_class),
        images_section(
            trained.data, {"Most confident mistakes": average}, tested, dict(members) or parts,
            "Images on which members disagree most",
        ),
    ]  # fmt: skip


def networks(tested: Predictions) -> dict[str, Samples]:
    """Return the predictions of the logit average and, if members are few, of each of them."""
    members = tested.logits.unbind(1)
    if len(members) == 1:
        return {"network": tested.average()}
    shown = members if len(members) <= LINES else ()
    return {"ensemble": tested.average()} | {
        f"member {index}": per_sample(each, tested.targets) for index, each in enumerate(shown)
    }
