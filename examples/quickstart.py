"""Train a MixMo network and single networks on 20 digits of each class, and print which is better and how certainly.

Run ``make quickstart`` or ``python examples/quickstart.py``. It takes about two and a half minutes on two cores.
Keywords of ``mixmo.fit`` may follow as settings: ``python examples/quickstart.py epochs=10 seed=3``.
"""

from __future__ import annotations

import ast
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

import mixmo

SHOWN = ("accuracy", "nll", "brier", "ece", "macs", "images")
CORES = os.cpu_count() or 1


class Progress(Callback):
    """Prints a network's progress every ten seconds or so.

    Args:
        name: The network's name.
    """

    def __init__(self, name: str) -> None:
        self.name, self.printed = name, time.monotonic()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Print a line if the last one is more than ten seconds old."""
        if time.monotonic() - self.printed > 10:
            self.printed = time.monotonic()
            print(f"{self.name}: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}", flush=True)


def free_folder(name: str) -> Path:
    """Return the first folder of that name that does not exist yet: runs/NAME, runs/NAME-2 and so on."""
    names = [name, *(f"{name}-{number}" for number in range(2, 10_000))]
    return next(path for path in (Path("runs") / each for each in names) if not path.exists())


def parse_settings(arguments: list[str]) -> dict[str, Any]:
    """Parse arguments ``KEYWORD=VALUE``; values are Python literals, or otherwise strings."""
    found = {}
    for argument in arguments:
        keyword, _, text = argument.removeprefix("--").partition("=")
        try:
            found[keyword] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[keyword] = text
    return found


def train(recipe: str, settings: dict[str, Any], folder: Path) -> None:
    """Train a recipe."""
    torch.set_num_threads(max(1, CORES // 4))
    mixmo.fit(recipe=recipe, out=folder, progress=False, callbacks=[Progress(folder.name)], **settings)
    print(f"{folder.name}: trained", flush=True)


def main(settings: dict[str, Any]) -> None:
    """Train the networks, a few at a time, then show their metrics and costs in one table."""
    recipes = ["quickstart-single", "quickstart-single-cutmix", "quickstart"]
    single, cutmix, several = folders = [free_folder(recipe) for recipe in recipes]
    second, out = free_folder("quickstart-single-seed-1"), free_folder("quickstart-comparison")
    jobs = [(recipe, settings, folder) for recipe, folder in zip(recipes, folders, strict=True)]
    jobs.append(("quickstart-single", settings | {"seed": 1}, second))
    print("Training four networks on 20 digits of each class; their folders are in runs.", flush=True)
    with ProcessPoolExecutor(min(4, CORES), multiprocessing.get_context("spawn")) as pool:
        for job in [pool.submit(train, *job) for job in jobs]:
            job.result()
    networks = {"single network": single, "single network + CutMix": cutmix, "Cut-MixMo": several}
    found = mixmo.compare(networks | {"two single networks": [single, second]}, out=out)
    title = f"20 digits of each class, {found.images} test images"
    print()
    Console(width=None if sys.stdout.isatty() else 120).print(found.show(*SHOWN, title=title))
    print(f"\n{found.only('single network', 'Cut-MixMo').sentence}")
    print(f"\nThe whole comparison: {out}/comparison.html. The trained network: {several}")


if __name__ == "__main__":
    main(parse_settings(sys.argv[1:]))
