"""``report.html``: all there is to know about a run on one page that stands alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

from mixmo.data.module import DataModule
from mixmo.errors import InputError
from mixmo.evaluation.evaluate import Samples
from mixmo.evaluation.predictions import Predictions
from mixmo.evaluation.records import read_environment, read_history
from mixmo.evaluation.results import EvaluationResult
from mixmo.files import write_text
from mixmo.metrics.ood import ood_scores
from mixmo.names import printable
from mixmo.reporting import charts
from mixmo.reporting import html as pages
from mixmo.reporting.tables import MORE_SCORES, TextTable, accuracies, corruption_table, figures_table, ood_tables
from mixmo.runs import Run

logger = logging.getLogger("mixmo")

PICTURES = 12
PICTURE_CAPTION = "what was said, and in brackets the truth"
SEVERITY_CAPTION = "Accuracy by severity, mean over all kinds of corruption"
DISAGREEMENT_CAPTION = "Share of images on which two members disagree"
SETTINGS = (
    "data.name", "model.backbone", "model.num_members", "mixer.kind", "pixels.kind", "data.batch_repetition",
    "data.batch_size", "trainer.max_epochs", "trainer.precision",
)  # fmt: skip
"""What tells most of a run."""


def write_report(run: Run, found: EvaluationResult) -> Path:
    """Write ``report.html`` into a run's folder and return its path.

    Args:
        run: The run.
        found: What is known of it.
    """
    tested, parts = found.predictions, charts.answers(found.predictions)
    sections = [
        pages.section("What was trained", _settings(run, tested)),
        pages.section("Figures", *_tables(found)),
        *_curves(run),
        *quality_sections(parts),
    ]
    if found.ood:
        datasets = {"test images": tested, **{name: result.predictions for name, result in found.ood.items()}}
        text = "Confidence, the largest of the members' mean probabilities, on test images and others"
        chart = pages.chart(lambda: charts.confidences({"members together": datasets}), text)
        sections.append(pages.section("Out of distribution", chart))
    if found.corruptions is not None:
        who = {name: "" if index == 0 else f"member_{index - 1}" for index, name in enumerate(parts)}
        lines = {name: accuracies(found, prefix) for name, prefix in who.items()}
        chart = pages.chart(lambda: charts.accuracy_by_severity(lines), SEVERITY_CAPTION)
        sections.append(pages.section("Corruptions", chart, corruption_table(found.corruptions).html()))
    if len(parts) > 1:
        chart = pages.chart(lambda: charts.disagreements({"members": tested}), DISAGREEMENT_CAPTION)
        sections.append(pages.section("Diversity", chart))
    sections += [pages.section("Images", *_pictures(run, tested, next(iter(parts.values())))), _repeat(run)]
    return write_text(run.path / "report.html", pages.page(f"Run {run.path.name}", sections))


def _settings(run: Run, tested: Predictions) -> str:
    config = run.config()
    rows = [[name, setting(config, name)] for name in SETTINGS]
    rows += [["seed", str(config["seed"])], ["test images", str(len(tested.targets))], ["epochs", str(tested.epochs)]]
    return pages.table(["setting", "value"], rows)


def setting(config: dict[str, object], name: str) -> str:
    """Return a setting by its dotted name, as text.

    Example:
        >>> setting({"model": {"backbone": "resnet18"}}, "model.backbone")
        'resnet18'
    """
    section, _, key = name.partition(".")
    return str(config[section][key])  # type: ignore[index]


def _tables(found: EvaluationResult) -> list[str]:
    """Return the table of scores, one of the figures that stand for the whole run, and one for each other dataset."""
    shared = [
        [key.replace("_", " "), f"{value:.4f}"]
        for key, value in (found.metrics.average | found.metrics.diversity | found.scaled).items()
        if key not in MORE_SCORES
    ]
    tables = [
        figures_table(found.metrics, f"{len(found.predictions.targets)} test images", MORE_SCORES),
        TextTable("of the ensemble, and of its members together", ["figure", ""], shared),
        *ood_tables(found.ood),
    ]
    return [table.html() for table in tables]


def _curves(run: Run) -> list[str]:
    text = "Learning curves; training accuracies are those of the mixtures"
    try:
        rows = read_history(run)
    except InputError as error:
        return [pages.section("Learning curves", complaint(error))]
    return [pages.section("Learning curves", pages.chart(lambda: charts.learning_curves(rows), text))] if rows else []


def _pictures(run: Run, tested: Predictions, average: Samples) -> list[str]:
    """Return the most confident mistakes and, with several members, the images they disagree on most."""
    chosen = {
        "The most confident mistakes": (
            confident_mistakes(average, PICTURES), average.predicted[:, None]
        )
    }  # fmt: skip
    if tested.logits.shape[1] > 1:
        unsure = ood_scores(tested.logits)["mutual_information"].argsort(descending=True)[:PICTURES].tolist()
        chosen["The images on which members disagree most"] = (unsure, tested.logits.argmax(2))
    parts = [
        pages.chart(partial(picture_grid, run, tested, numbers, said), f"{heading}: {PICTURE_CAPTION}")
        for heading, (numbers, said) in chosen.items()
        if numbers
    ]
    return parts or [pages.paragraph("No mistakes.")]


def confident_mistakes(samples: Samples, count: int) -> list[int]:
    """Return the numbers of the wrong answers with the largest probabilities, the largest first.

    Example:
        >>> from mixmo.evaluation.evaluate import per_sample
        >>> logits = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
        >>> confident_mistakes(per_sample(logits, torch.tensor([0, 1, 1])), 5)
        [2, 1]
    """
    wrong = samples.right == 0
    order = torch.where(wrong, samples.confidence, -1.0).argsort(descending=True)
    return order[: min(count, int(wrong.sum()))].tolist()


def picture_grid(run: Run, tested: Predictions, numbers: list[int], said: torch.Tensor) -> Figure:
    """Draw test images under what was said of them, and in brackets the truth.

    Args:
        run: Whose test set.
        tested: Predictions on it.
        numbers: Which images.
        said: (N, m) class numbers.
    """
    data = DataModule(run.settings().data)
    images = [data.image(number) for number in numbers]
    names = [printable(name) for name in tested.classes]
    titles = [
        f"{' / '.join(names[k] for k in said[number].tolist())}\n({names[int(tested.targets[number])]})"
        for number in numbers
    ]
    return charts.image_grid(images, titles)


def _repeat(run: Run) -> str:
    parts = [pages.listing(run.config_file.read_text("utf-8").strip())]
    try:
        found = read_environment(run)
        texts = [found["command"], json.dumps(found, indent=2, ensure_ascii=False)]
        parts = [*(pages.listing(text) for text in texts), *parts]
    except InputError as error:
        parts.insert(0, complaint(error))
    return pages.section("How to repeat it", *parts)


def complaint(error: InputError) -> str:
    """Log that something is missing on the page, and return the sentence that stands in its place."""
    logger.warning("%s", printable(str(error)))
    return pages.paragraph(f"{error} It is left out.")


def quality_sections(parts: Mapping[str, Samples]) -> list[str]:
    """Return the sections of calibration and selective prediction.

    Args:
        parts: What is known of the answers, by name.
    """
    reliability = pages.chart(lambda: charts.reliability(parts), "Accuracy by confidence; the line is perfection")
    coverage = pages.chart(lambda: charts.risk_coverage(parts), "Error among the most confident predictions")
    return [pages.section("Calibration", reliability), pages.section("Selective prediction", coverage)]
