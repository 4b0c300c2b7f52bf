"""``mixmo test``: judge runs on their test set, alone or as one ensemble; show what was found and keep it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mixmo.evaluation.results import Judgement, Options, class_figures, judge_predictions, judge_runs
from mixmo.names import printable
from mixmo.reporting.run_report import write_report
from mixmo.reporting.tables import class_table, corruption_table, figures_table, ood_tables
from mixmo.runs import Run

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
    refresh: bool = False,
    download: bool = False,
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
        refresh: Predict anew, whatever is kept.
        download: Whether what the networks are built from may be downloaded.

    Returns:
        The figures of :class:`mixmo.evaluation.results.Judgement`.

    Raises:
        MissingError: if a run, its checkpoint or a dataset is missing.
        InputError: if a checkpoint is damaged or of another network, the runs do not fit each other, or (after the
            tables are shown) nothing can be written into the run's folder.
    """
    options = Options(checkpoint, precision, ood, corruptions, refresh, download)
    found = judge_runs(runs, options)
    shown, tested = " + ".join(run.path.name for run in runs), found.tested
    title = f"{shown}: {len(tested.targets)} test images, {checkpoint} checkpoint (epoch {tested.epochs})"
    by_class = class_figures(tested) if per_class else {}
    _show(title, found, by_class)
    if len(runs) == 1:
        (run,) = runs
        print(f"figures: {printable(str(run.write_json('test.json', _content(run, found, by_class, options))))}")
        print(f"report: {printable(str(write_report(run, found)))}")
    return found.figures


def _content(run: Run, found: Judgement, by_class: dict[str, dict[str, float]], options: Options) -> dict[str, Any]:
    """Return what ``test.json`` holds."""
    content: dict[str, Any] = dict(found.figures)
    if found.corrupted is not None:
        content["corruptions"] = {"source": found.corrupted.source, "kinds": found.corrupted.kinds}
    if by_class:
        content["per_class"] = by_class
    content["about"] = {
        "run": str(run.path),
        "dataset": run.config()["data"]["name"],
        "images": len(found.tested.targets),
        "checkpoint": options.checkpoint,
        "epochs": found.tested.epochs,
        "precision": options.precision,
        "conventions": CONVENTIONS,
    }
    return content


def judge_file(file: str | Path, per_class: bool = False) -> dict[str, float]:
    """Judge predictions that another program saved (:func:`mixmo.evaluation.predictions.read_predictions`).

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
