"""``mixmo test``: judge runs on their test set, alone or as one ensemble."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from mixmo.evaluation import evaluate
from mixmo.metrics import Calibration, OutOfDistribution, Scores, fit_temperature
from mixmo.predictions import Predictions, joined, predict, read_predictions
from mixmo.report import write_report
from mixmo.runs import Run

COLUMNS = {
    "accuracy": ("top-1 %", 100, 2),
    "accuracy_top5": ("top-5 %", 100, 2),
    "nll": ("NLL", 1, 4),
    "brier": ("Brier", 1, 4),
    "ece": ("ECE %", 100, 2),
}
"""How the scores are shown: heading, factor, digits."""

CONVENTIONS = {
    "accuracy": "share, 0 to 1",
    "nll": "nats",
    "brier": "summed over classes; brier_per_class is divided by K, as in the paper's code",
    "ece": "15 equal bins, lo < confidence <= hi, top label",
    "d_re": "errors of exactly one of two members / errors of both, mean over pairs",
    "two_fold": "each half of the test set scaled by the temperature of the other",
    "scaled": "scaled by the temperature fitted on the validation set",
    "ood": "the other dataset is the positive class",
}


def judge(
    *runs: Run,
    checkpoint: str = "last",
    precision: str = "32-true",
    ood: Sequence[str] = (),
    per_class: bool = False,
) -> dict[str, float]:
    """Judge runs on their test set: a table on screen and, for one run, ``test.json`` and ``report.html``.

    Several runs are judged as one ensemble of all their members.

    Args:
        *runs: The runs' folders.
        checkpoint: ``last``, or ``best`` on the validation set.
        precision: ``32-true``, or ``bf16-mixed``, which is faster where the device has such units.
        ood: Datasets whose images are of none of the classes.
        per_class: Judge each class as well.

    Returns:
        The figures of :func:`mixmo.evaluate`, ``temperature``, ``nll_scaled`` and ``ece_scaled`` where one run has a
        validation set, and ``ood/DATASET/SCORE/…`` (:class:`mixmo.metrics.OutOfDistribution`).

    Raises:
        FileNotFoundError: if a run, its checkpoint or a dataset is missing.
        ValueError: if a checkpoint is damaged or of another network, or the runs do not fit each other.
    """
    names = [str(run.path) for run in runs]

    def predictions(dataset: str) -> Predictions:
        return joined([predict(run, dataset, checkpoint, precision) for run in runs], names)

    tested = predictions("test")
    figures = evaluate(tested.logits, tested.targets)
    config = runs[0].config()
    if len(runs) == 1 and config["data"]["validation"]:
        figures |= scaled_figures(tested, predictions("validation"))
    strangers = {dataset: predictions(dataset) for dataset in ood}
    for dataset, found in strangers.items():
        figures |= {f"ood/{dataset}/{key}": value for key, value in ood_figures(tested, found).items()}
    by_class = class_figures(tested) if per_class else {}
    if len(runs) == 1:
        about = {
            "run": names[0],
            "dataset": config["data"]["name"],
            "images": len(tested.targets),
            "checkpoint": checkpoint,
            "epochs": tested.epochs,
            "precision": precision,
            "conventions": CONVENTIONS,
        }
        extra: dict[str, Any] = {"per_class": by_class} if per_class else {}
        runs[0].write_json("test.json", {**figures, **extra, "about": about})
    shown = " + ".join(run.path.name for run in runs)
    _show(
        f"{shown}: {len(tested.targets)} test images, {checkpoint} checkpoint (epoch {tested.epochs})",
        figures,
        by_class,
    )
    if len(runs) == 1:
        print(f"figures: {runs[0].path / 'test.json'}\nreport: {write_report(runs[0], tested, figures, strangers)}")
    return figures


def judge_file(file: str | Path, per_class: bool = False) -> dict[str, float]:
    """Judge predictions that another program saved, by the same figures (:func:`mixmo.predictions.read_predictions`).

    Args:
        file: The ``.npz`` file.
        per_class: Judge each class as well.
    """
    found = read_predictions(file)
    figures = evaluate(found.logits, found.targets)
    by_class = class_figures(found) if per_class else {}
    _show(f"{Path(file).name}: {len(found.targets)} images", figures, by_class)
    return figures


def scaled_figures(tested: Predictions, validation: Predictions) -> dict[str, float]:
    """Return the figures of the logit average on the test set, scaled by the temperature fitted on validation data."""
    temperature = fit_temperature(validation.logits.double().mean(1), validation.targets)
    probabilities = (tested.logits.double().mean(1) / temperature).softmax(1)
    scores, calibration = Scores(), Calibration()
    scores.update(probabilities, tested.targets)
    calibration.update(probabilities, tested.targets)
    return {
        "temperature": temperature,
        "nll_scaled": scores.compute()["nll"].item(),
        "ece_scaled": calibration.compute()["ece"].item(),
    }


def ood_figures(tested: Predictions, strangers: Predictions) -> dict[str, float]:
    """Return how well the members tell the test images from others."""
    metric = OutOfDistribution()
    metric.update(tested.logits, out=False)
    metric.update(strangers.logits, out=True)
    return {name: value.item() for name, value in metric.compute().items()}


def class_figures(tested: Predictions) -> dict[str, dict[str, float]]:
    """Return for each class the number of its images, and accuracy and likelihood of the logit average on them."""
    logs = tested.logits.double().mean(1).log_softmax(1)
    right = (logs.argmax(1) == tested.targets).double()
    nll = -logs.gather(1, tested.targets[:, None])[:, 0]

    def mean(values: Tensor, own: Tensor) -> float:
        return values[own].mean().item()

    found = {}
    for number, name in enumerate(tested.classes):
        own = tested.targets == number
        found[name] = {"images": int(own.sum()), "accuracy": mean(right, own), "nll": mean(nll, own)}
    return found


def _show(title: str, figures: Mapping[str, float], by_class: Mapping[str, Mapping[str, float]]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(figures_table(figures, title))
    datasets = dict.fromkeys(key.rsplit("/", 2)[0] for key in figures if key.startswith("ood/"))
    for dataset in datasets:
        table = Table(title=f"out of distribution: {dataset.removeprefix('ood/')}")
        for heading in ("score", "AUROC", "AUPR", "FPR95"):
            table.add_column(heading, justify="left" if heading == "score" else "right")
        for score in dict.fromkeys(key.split("/")[-2] for key in figures if key.startswith(f"{dataset}/")):
            values = (figures[f"{dataset}/{score}/{name}"] for name in ("auroc", "aupr", "fpr95"))
            table.add_row(score.replace("_", " "), *(f"{value:.4f}" for value in values))
        console.print(table)
    if by_class:
        table = Table(title="by class, logit average")
        for heading in ("class", "images", "top-1 %", "NLL"):
            table.add_column(heading, justify="left" if heading == "class" else "right")
        for name, own in by_class.items():
            table.add_row(name, str(own["images"]), f"{100 * own['accuracy']:.2f}", f"{own['nll']:.4f}")
        console.print(table)


def figures_table(figures: Mapping[str, float], title: str) -> Table:
    """Return the figures of :func:`mixmo.evaluate` as a table: the ensemble and every member, or the one network.

    Example:
        >>> import torch
        >>> figures = evaluate(torch.zeros(2, 2, 3), torch.tensor([0, 1]))
        >>> figures_table(figures, "two images").row_count
        4
    """
    table = Table(title=title)
    table.add_column("")
    for heading, _, _ in COLUMNS.values():
        table.add_column(heading, justify="right")
    members = sorted(key.partition("/")[0] for key in figures if key.startswith("member_") and key.endswith("/nll"))
    if len(members) == 1:
        add_figures(table, "single network", figures)
        return table
    add_figures(table, "ensemble, logit average", figures)
    add_figures(table, "ensemble, probability average", figures, "probability_average/")
    for member in members:
        add_figures(table, member.replace("_", " "), figures, f"{member}/")
    table.caption = f"diversity: d_re {figures['d_re']:.3f}, disagreement {100 * figures['disagreement']:.2f} %"
    return table


def add_figures(table: Table, label: str, figures: Mapping[str, float], prefix: str = "") -> None:
    """Add the row of the scores under ``prefix`` to a table of :func:`figures_table`."""
    table.add_row(label, *(f"{figures[prefix + key] * by:.{d}f}" for key, (_, by, d) in COLUMNS.items()))
