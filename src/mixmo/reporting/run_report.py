"""``report.html``: the page of a run."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from markupsafe import Markup

from mixmo.data.module import DataModule
from mixmo.errors import InputError
from mixmo.evaluation.evaluate import Samples, per_sample
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.intervals import image_intervals
from mixmo.evaluation.predictions import Predictions
from mixmo.evaluation.records import read_environment, read_history
from mixmo.evaluation.results import EvaluationResult
from mixmo.files import write_text
from mixmo.metrics.catalogue import CORRUPTED, DIVERSITY, METRICS, PER_NETWORK, SCALED
from mixmo.metrics.ood import ood_scores
from mixmo.names import dataset_name
from mixmo.reporting import charts, class_charts
from mixmo.reporting import html as pages
from mixmo.reporting.advice import advice
from mixmo.reporting.headline import cards, lead_sentence
from mixmo.reporting.pictures import disagreements, mistakes
from mixmo.reporting.sections import (
    Section,
    class_section,
    confidence_section,
    glossary_notes,
    missing_sentence,
    ood_section,
)
from mixmo.reporting.tables import accuracies, corruption_table, ood_tables
from mixmo.runs import RunFolder

LINES = 6
"""Members up to which each has a line of its own in plots."""


def write_report(trained: TrainedRun, result: EvaluationResult) -> Path:
    """Write ``report.html`` into a run's folder and return its path.

    Args:
        trained: The run.
        result: Its evaluation.

    Raises:
        InputError: if it cannot be written.
    """
    return write_text(trained.path / "report.html", run_page(trained, result))


def run_page(trained: TrainedRun, result: EvaluationResult) -> str:
    """Return the page of a run.

    Args:
        trained: The run.
        result: Its evaluation.
    """
    run, ranges = trained.folder, image_intervals(result.predictions)
    parts = networks(result.predictions)
    whole = next(iter(parts.items()))
    sections = [
        confidence_section(dict([whole]), parts),
        class_section(result.predictions, whole[1]),
        _images(trained.data, result.predictions, parts),
        *_curves(run),
        *_corruptions(result, parts),
        *_ood(result),
        *_members(result),
    ]
    return pages.render(
        "answer.html",
        title=f"Run {run.path.name}",
        lead=lead_sentence(trained, result, ranges),
        answer=[
            pages.part("cards", cards({**result.metrics.average, **result.metrics.diversity}, ranges)),
            pages.part(
                "sentence",
                "In brackets: 95 % intervals over test images, of the metrics whose intervals keep that promise. Open "
                "a card to read what it means.",
            ),
        ],
        sections=sections,
        metrics=_all_metrics(result),
        reproduce=_reproduce(run, result.predictions),
    )


def networks(tested: Predictions) -> dict[str, Samples]:
    """Return what is known of the predictions of the logit average and, of a few members, of each of them.

    Example:
        >>> import torch
        >>> one = Predictions(torch.zeros(4, 2, 3), torch.zeros(4, dtype=torch.long), ["a", "b", "c"])
        >>> list(networks(one))
        ['ensemble', 'member 0', 'member 1']
    """
    members = tested.logits.unbind(1)
    if len(members) == 1:
        return {"network": tested.average()}
    shown = members if len(members) <= LINES else ()
    return {"ensemble": tested.average()} | {
        f"member {index}": per_sample(each, tested.targets) for index, each in enumerate(shown)
    }


def _images(data: DataModule, tested: Predictions, parts: dict[str, Samples]) -> Section:
    average, *members = parts.items()
    shown = [mistakes("", data, tested, average[1])]
    if tested.logits.shape[1] > 1:
        uncertainty = ood_scores(tested.logits)["mutual_information"]
        heading = "Images on which members disagree most"
        shown.append(disagreements(heading, data, tested, uncertainty, dict(members or [average])))
    return Section("Images", parts=shown)


def _curves(run: RunFolder) -> list[Section]:
    try:
        rows = read_history(run)
    except InputError as error:
        return [Section("Learning curves", parts=[missing_sentence(error)])]
    if not rows:
        return []
    single = run.trained_config()["model"]["num_members"] == 1
    names = {}
    for key in rows[-1]:
        if key.endswith("accuracy") and not (single and key == "val_member_0_accuracy"):  # as val_accuracy
            name = key.removesuffix("_accuracy").replace("train", "training").replace("val", "validation")
            names[key] = (name.removesuffix("_member_0") if single else name).replace("_", " ")
    curves: dict[str, tuple[charts.History, str]] = {name: (rows, key) for key, name in names.items()}
    plots = [pages.chart(lambda: charts.loss_curves({"run": rows}), "Training loss by epoch")]
    if curves:
        plots.append(pages.chart(lambda: charts.accuracy_curves(curves), "Accuracy by epoch"))
    mixed = "Training loss and accuracy are those of the mixtures, which are harder than test images."
    return [Section("Learning curves", "" if single else mixed, plots)]


def _corruptions(result: EvaluationResult, parts: dict[str, Samples]) -> list[Section]:
    if result.corruptions is None:
        return []
    who = {name: "" if index == 0 else f"member_{index - 1}" for index, name in enumerate(parts)}
    lines = {name: accuracies(result, prefix) for name, prefix in who.items()}
    plot = pages.chart(lambda: charts.accuracy_by_severity(lines), "Accuracy by severity of corruption")
    return [
        Section(
            "Corruptions",
            "",
            [plot],
            [pages.part("fold", "Every kind of corruption", [corruption_table(result.corruptions).html()])],
        )
    ]


def _ood(result: EvaluationResult) -> list[Section]:
    if not result.ood:
        return []
    datasets = {"test images": result.predictions} | {
        dataset_name(name): ood.predictions for name, ood in result.ood.items()
    }
    tables = [table.html() for table in ood_tables(result.ood)]
    return [ood_section({"the members together" if result.metrics.diversity else "the network": datasets}, tables)]


def _members(result: EvaluationResult) -> list[Section]:
    tested, plots = result.predictions, []
    text = advice(result.diagnosis, tested.logits.shape[1])
    if tested.logits.shape[1] > 2:  # two have one number, which stands on top
        caption = "Images, in %, for which two members predict different classes"
        plots = [pages.chart(lambda: class_charts.disagreement(tested, "Disagreement, %"), caption)]
    return [Section("Members", text, plots)] if text or plots else []


def _all_metrics(result: EvaluationResult) -> list[Markup]:
    metrics = result.metrics
    columns = {"Network": metrics.average}
    if metrics.diversity:
        columns = {"Logit average": metrics.average, "Probability average": metrics.probability_average}
        columns |= {f"Member {index}": values for index, values in enumerate(metrics.members)}
    tables = [_metric_table("Each network", PER_NETWORK, columns)]
    if metrics.diversity:
        tables.append(_metric_table("The members together, mean over pairs", DIVERSITY, {"": metrics.diversity}))
    if result.diagnosis and (known := result.diagnosis.flat()):
        tables.append(_metric_table("Diagnosis", list(known), {"": known}))
    scaled = {key: value for key, value in (metrics.average | result.scaled).items() if key in SCALED}
    tables.append(_metric_table("After temperature scaling of the logits", list(scaled), {"": scaled}))
    if result.corruptions is not None:
        means = {f"corruption/{key}": value for key, value in result.corruptions.means().items()}
        tables.append(_metric_table(f"Corruptions, {result.corruptions.source}", CORRUPTED, {"": means}))
    return tables


def _metric_table(title: str, keys: Collection[str], columns: Mapping[str, Mapping[str, float]]) -> Markup:
    rows = [[METRICS[key].heading, *(METRICS[key].text(values[key]) for values in columns.values())] for key in keys]
    return pages.table([title, *columns], rows, notes=glossary_notes(keys))


def _reproduce(run: RunFolder, tested: Predictions) -> list[Markup]:
    about = f"Trained for {tested.epochs} epochs with seed {run.trained_config()['seed']}."
    parts = [pages.part("sentence", about)]
    try:
        found = read_environment(run)
        parts.append(pages.part("listing", "Command", found["command"]))
        environment = pages.part("listing", "Environment", json.dumps(found, indent=2, ensure_ascii=False))
    except InputError as error:
        environment = missing_sentence(error)
    return [*parts, pages.part("listing", "Configuration", run.config_file.read_text("utf-8").strip()), environment]
