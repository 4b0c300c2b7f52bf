"""Train a two-member MixMo network and a single network of equal training cost on the digits; compare them.

Run it by ``make quickstart``, or ``python examples/quickstart.py``. It takes a minute or two on two cores.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

import mixmo
from mixmo.cli.main import main as command
from mixmo.cli.main import notices
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.data.batches import Augmentation
from mixmo.data.module import DataModule
from mixmo.data.sets import evaluation_loader
from mixmo.evaluation.inference import predict_logits
from mixmo.evaluation.results import evaluate_runs
from mixmo.reporting.tables import metrics_row, metrics_table
from mixmo.runs import Run
from mixmo.training.fit import fit


def free_folder(name: str) -> Run:
    """Return the first run folder of that name that does not exist yet: runs/NAME, runs/NAME-2 and so on."""
    names = [name, *(f"{name}-{number}" for number in range(2, 10_000))]
    return next(run for run in (Run(Path("runs") / each) for each in names) if not run.path.exists())


def train(recipe: str, overrides: list[str]) -> Run:
    """Train a recipe in a folder of its own and evaluate it on the test set."""
    plan, run = make_plan(load_recipe(recipe), overrides), free_folder(recipe)
    print(f"\nTraining {recipe} in {run.path}")
    fit(plan, run)
    command(["test", str(run.path)])
    return run


def main(overrides: list[str]) -> None:
    """Train both networks, then show their metrics and the fused network's in one table."""
    ensemble = train("quickstart", overrides)
    single = train("quickstart-single", overrides)

    fused = mixmo.fuse(mixmo.load(ensemble.path)).eval()  # an ordinary network: the backbone's own class
    data = make_plan(ensemble.config()).settings.data
    batches = evaluation_loader(DataModule(data).test, data, torch.device("cpu"))
    logits, targets = predict_logits(fused, batches, Augmentation(data), torch.device("cpu"))

    table = metrics_table(evaluate_runs([ensemble]).metrics, "Digits, 360 test images")
    others = [
        metrics_row(f"fused into one plain {type(fused).__name__}", mixmo.evaluate(logits, targets)),
        metrics_row("single network, trained for as long", evaluate_runs([single]).metrics.average),
    ]
    print()
    Console(width=None if sys.stdout.isatty() else 120).print(replace(table, rows=[*table.rows, *others]).rich())
    print(f"\nThe runs' folders: {ensemble.path} and {single.path}")


if __name__ == "__main__":
    with notices():
        main(sys.argv[1:])
