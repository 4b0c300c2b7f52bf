"""``mixmo test``: judge runs on their test set, alone or as one ensemble; show what was found and keep it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mixmo.judging import Judgement, Options, class_figures, judge_predictions, judge_runs
from mixmo.report import write_report
from mixmo.runs import Run
from mixmo.tables import class_table, corruption_table, figures_table, ood_tables

CONVENTIONS = {
    "accuracy": "share, 0 to 1",
    "nll": "nats",
    "brier": "summed over classes; brier_per_class is divided by K, as in the paper's code",
    "ece": "15 equal bins, lo < confidence <= hi, top label",
    "d_re": "errors of exactly one of two members / errors of both, mean over pairs",
    "two_fold": "each half of the test set scaled by the temperature of the other",
    "scaled": "scaled by the temperature fitted on the validation set",
    "ood": "the other dataset is the positive class",
    "corruption": "mean over all kinds and severities; each is in `corruptions`",
}


def judge(
    *runs: Run,
    checkpoint: str = "last",
    precision: str = "32-true",
    ood: Sequence[str] = (),
    corruptions: str | None = None,
    per_class: bool = False,
) -> dict[str, float]:
    """Judge runs on their test set: tables on screen and, for one run, ``test.json`` and ``report.html``.

    Several runs are judged as one ensemble of all their members.

    Args:
        *runs: The runs' folders.
        checkpoint: ``last``, or ``best`` on the validation set.
        precision: ``32-true``, or ``bf16-mixed``, which is faster where the device has such units.
        ood: Datasets whose images are of none of the classes.
        corruptions: ``made`` from the test images, or the folder of CIFAR-10-C's or CIFAR-100-C's files.
        per_class: Judge each class as well.

    Returns:
        The figures of :class:`mixmo.judging.Judgement`.

    Raises:
        MissingError: if a run, its checkpoint or a dataset is missing.
        InputError: if a checkpoint is damaged or of another network, or the runs do not fit each other.
    """
    found = judge_runs(runs, Options(checkpoint, precision, ood, corruptions))
    shown, tested = " + ".join(run.path.name for run in runs), found.tested
    title = f"{shown}: {len(tested.targets)} test images, {checkpoint} checkpoint (epoch {tested.epochs})"
    by_class = class_figures(tested) if per_class else {}
    _show(title, found, by_class)
    if len(runs) > 1:
        return found.figures
    content: dict[str, Any] = dict(found.figures)
    if found.corrupted is not None:
        content["corruptions"] = {"source": found.corrupted.source, "kinds": found.corrupted.kinds}
    if by_class:
        content["per_class"] = by_class
    content["about"] = {
        "run": str(runs[0].path),
        "dataset": runs[0].config()["data"]["name"],
        "images": len(tested.targets),
        "checkpoint": checkpoint,
        "epochs": tested.epochs,
        "precision": precision,
        "conventions": CONVENTIONS,
    }
    print(f"figures: {runs[0].write_json('test.json', content)}\nreport: {write_report(runs[0], found)}")
    return found.figures


def judge_file(file: str | Path, per_class: bool = False) -> dict[str, float]:
    """Judge predictions that another program saved, by the same figures (:func:`mixmo.predictions.read_predictions`).

    Args:
        file: The ``.npz`` file.
        per_class: Judge each class as well.
    """
    found = judge_predictions(file)
    by_class = class_figures(found.tested) if per_class else {}
    _show(f"{Path(file).name}: {len(found.tested.targets)} images", found, by_class)
    return found.figures


def _show(title: str, found: Judgement, by_class: dict[str, dict[str, float]]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    tables = [figures_table(found.figures, title), *ood_tables(found.figures)]
    if found.corrupted is not None:
        tables.append(corruption_table(found.corrupted))
    if by_class:
        tables.append(class_table(by_class))
    for table in tables:
        console.print(table.rich())
