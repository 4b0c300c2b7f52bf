"""Plot how training accuracy grows with each pass for the methods of a study's task.

    python benchmarks/study_curves.py benchmarks/studies/cifar100-long.yaml "16 pixels, width 2, 150 passes" \
        --curves benchmarks/results/cifar100-long.curves.csv --picture docs/when-it-pays/training.png

First, the epochs of all methods whose networks are trained in ``--scratch`` are written to ``--curves``; other methods'
rows in that file are kept.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from study import rows_of
from study_plans import Rows, folder_of, read_rows

from mixmo.runs import RunFolder

COLUMNS = ("method", "passes", "train_loss", "train_accuracy", "lr")


def curves_of(study: Mapping[str, Any], scratch: Path, names: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Return the epochs of each method whose networks are all trained, with values averaged over its networks.

    Args:
        study: The study, of one task; of its seeds the first counts.
        scratch: The folder of the networks.
        names: Replacements for dataset names.
    """
    found = dict[str, list[dict[str, Any]]]()
    for row in rows_of(study | {"seeds": study["seeds"][:1]}, scratch, names):
        runs = [RunFolder(folder_of(plan, scratch)).read_metrics() for plan in row.plans]
        settings = row.plans[0].settings
        if any(len(epochs) < settings.trainer.max_epochs for epochs in runs):
            continue
        b = settings.data.batch_repetition
        found[row.about["method"]] = [_average(epochs, b) for epochs in zip(*runs, strict=True)]
    return found


def _average(epochs: tuple[Mapping[str, float], ...], batch_repetition: int) -> dict[str, Any]:
    """Return the mean of one epoch's values over networks and members."""
    accuracies = [value for each in epochs for key, value in each.items() if key.startswith("train_member_")]
    loss, lr = (statistics.fmean(each[key] for each in epochs) for key in ("train_loss", "lr"))
    passes, accuracy = int(epochs[0]["epoch"]) * batch_repetition, statistics.fmean(accuracies)
    return {"passes": passes, "train_loss": f"{loss:.6g}", "train_accuracy": f"{accuracy:.6g}", "lr": f"{lr:.6g}"}


def draw_curves(rows: Rows) -> Figure:
    """Plot training accuracy after each pass, a line for each method, with its name at the line's end."""
    figure = Figure(figsize=(8, 4))
    axis = figure.subplots()
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [(int(row["passes"]), 100 * float(row["train_accuracy"])) for row in rows if row["method"] == method]
        (line,) = axis.plot(*zip(*own, strict=True), linewidth=1.5)
        axis.annotate(f" {method}", own[-1], color=line.get_color(), fontsize=9, va="center")
    axis.set_xlabel("passes over the training images of each network")
    axis.set_ylabel("training accuracy, %")
    axis.margins(x=0)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("task")
    parser.add_argument("--curves", type=Path, required=True, help="CSV file of all epochs")
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, default=Path("runs/study"), help="where study.py keeps its networks")
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=OTHER", help="as for study.py")
    given = parser.parse_args()
    study = yaml.safe_load(given.study.read_text())
    study["tasks"] = {given.task: study["tasks"][given.task]}
    curves = curves_of(study, given.scratch, dict(word.split("=", 1) for word in given.data))
    rows = [row for row in read_rows(given.curves) if row["method"] not in curves]
    rows += [{"method": method} | epoch for method, epochs in curves.items() for epoch in epochs]
    with given.curves.open("w", newline="") as content:
        writer = csv.DictWriter(content, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw_curves(rows).savefig(given.picture, dpi=130)


if __name__ == "__main__":
    main()
