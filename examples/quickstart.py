"""Train one MixMo network and single networks on 20 digits of each class; say which is better, and how sure that is.

Run it by ``make quickstart``, or ``python examples/quickstart.py``. It takes about two and a half minutes on two cores.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from mixmo.cli.main import notices
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.reporting.comparison_lead import lead_sentence
from mixmo.reporting.comparison_page import compare
from mixmo.reporting.comparison_tables import groups_table
from mixmo.reporting.glossary import METRICS
from mixmo.runs import Run
from mixmo.training.fit import fit

SHOWN = ("accuracy", "nll", "brier", "ece", "macs", "images")
CORES = os.cpu_count() or 1


class Progress(Callback):
    """Prints how far a network is, now and then.

    Args:
        name: What to call it.
    """

    def __init__(self, name: str) -> None:
        self.name, self.printed = name, time.monotonic()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Print a line if the last one is old enough."""
        if time.monotonic() - self.printed > 10:
            self.printed = time.monotonic()
            print(f"{self.name}: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}", flush=True)


def free_folder(name: str) -> Path:
    """Return the first folder of that name that does not exist yet: runs/NAME, runs/NAME-2 and so on."""
    names = [name, *(f"{name}-{number}" for number in range(2, 10_000))]
    return next(path for path in (Path("runs") / each for each in names) if not path.exists())


def train(recipe: str, overrides: list[str], folder: Path) -> None:
    """Train a recipe in a folder."""
    torch.set_num_threads(max(1, CORES // 4))
    fit(make_plan(load_recipe(recipe), overrides), Run(folder), callbacks=[Progress(folder.name)])
    print(f"{folder.name}: trained", flush=True)


def main(overrides: list[str]) -> None:
    """Train the networks, a few at a time, then show their metrics and costs in one table."""
    recipes = ["quickstart-single", "quickstart-single-cutmix", "quickstart"]
    single, cutmix, mixmo = folders = [free_folder(recipe) for recipe in recipes]
    second, out = free_folder("quickstart-single-seed-1"), free_folder("quickstart-comparison")
    jobs = [(recipe, overrides, folder) for recipe, folder in zip(recipes, folders, strict=True)]
    jobs.append(("quickstart-single", [*overrides, "--seed=1"], second))
    print("Training four networks on 20 digits of each class; their folders are in runs.", flush=True)
    with ProcessPoolExecutor(min(4, CORES), multiprocessing.get_context("spawn")) as pool:
        for job in [pool.submit(train, *job) for job in jobs]:
            job.result()
    groups = compare(
        [
            f"single network={single}", f"single network + CutMix={cutmix}", f"Cut-MixMo={mixmo}",
            f"two single networks={single}+{second}",
        ],
        out,
    )  # fmt: skip
    single_group, _, mixmo_group, _ = groups
    images = len(groups[0].entries[0].result.predictions.targets)
    table = groups_table(groups, {key: METRICS[key] for key in SHOWN}, f"20 digits of each class, {images} test images")
    print()
    Console(width=None if sys.stdout.isatty() else 120).print(table.rich())
    print(f"\n{lead_sentence([single_group, mixmo_group])}")
    print(f"\nThe whole comparison: {out}/comparison.html. The trained network: {mixmo}")


if __name__ == "__main__":
    with notices():
        main(sys.argv[1:])
