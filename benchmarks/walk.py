"""Count the package's files and functions that a command enters, and work that it repeats.

    python benchmarks/walk.py

Trains one batch of ``digits-cut``, predicts one image and tests the run from the command line, and prints for each how
many files and functions of the package were entered, and how often the configuration was parsed, a dataset opened, a
set of images decoded, a network built, and a checkpoint read.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import mixmo
from mixmo.cli.main import main

ROOT = str(Path(mixmo.__file__).parent)
AGAIN = {
    "configuration parsed": ("config/plan.py", "make_plan"),
    "dataset opened": ("data/datasets.py", "open"),
    "images decoded": ("data/reading.py", "decode_all"),
    "network built": ("network.py", "__init__"),
    "checkpoint read": ("checkpoints.py", "load"),
}
"""The functions for work that a command should do only once."""


def walk(call: Callable[[], Any]) -> tuple[set[str], Counter[tuple[str, str]]]:
    """Return the package's files that a call enters, and the number of calls of each function."""
    entered: Counter[tuple[str, str]] = Counter()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and (file := frame.f_code.co_filename).startswith(ROOT):
            entered[os.path.relpath(file, ROOT), frame.f_code.co_qualname if sys.version_info >= (3, 11) else ""] += 1

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return {file for file, _ in entered}, entered


def main_walk() -> None:
    """Trace the commands and print the counts."""
    with tempfile.TemporaryDirectory() as folder:
        run, image = f"{folder}/run", f"{folder}/a.png"
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
        words = ["--trainer.limit_train_batches=1", "--trainer.max_epochs=1", "--data.workers=0"]
        commands = {
            "fit": (
                ["fit", "digits-cut", *words, "--run", run],
                ["fit", "digits-cut", *words, "--run", f"{run}-again"],
            ),
            "predict": (["predict", run, image, "--out", f"{folder}/{name}.csv"] for name in ("first", "again")),
            "test": (["test", run], ["test", f"{run}-again"]),
        }
        for command, (first, again) in commands.items():
            main(first)  # imports what it needs
            files, entered = walk(lambda again=again: main(again))
            print(f"\nmixmo {command}: {len(files)} files, {len(entered)} functions")
            for what, (file, name) in AGAIN.items():
                times = sum(count for (own, function), count in entered.items()
                            if own == file and function.split(".")[-1] == name)  # fmt: skip
                print(f"  {what}: {times}")


if __name__ == "__main__":
    main_walk()
