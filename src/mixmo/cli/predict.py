"""``mixmo predict``: classes, calibrated confidence, uncertainty and conformal sets for new images."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from rich.console import Console
from rich.progress import track

from mixmo.cli.options import Command, Download, Overwrite, Word
from mixmo.config.data_settings import MOST_WORKERS, BatchSize
from mixmo.config.hardware import Precision
from mixmo.data.batches import Augmentations
from mixmo.data.decoding import SIGNATURE, starts_like_image
from mixmo.deploy.images import AnyImage, files_below
from mixmo.deploy.predictor import Predictor
from mixmo.deploy.writing import COLUMNS, LABEL_COLUMNS, open_writer
from mixmo.errors import InputError
from mixmo.escaping import message, printable
from mixmo.evaluation.calibration import Weights
from mixmo.metrics.conformal import Sets
from mixmo.runs import Checkpoint
from mixmo.validation import Boolean, Integer, Number, Place, settings_class

logger = logging.getLogger("mixmo")

PREDICTOR = (
    "checkpoint", "coverage", "max_error_rate", "precision", "download", "sets", "tta", "weights", "features",
)  # fmt: skip
"""Options of :class:`~mixmo.Predictor`."""

SHOWN = 20
"""Largest number of unreadable files that are named."""


@settings_class()
class Options:
    """Which network predicts, for which images, and what is written."""

    model: Word[str]
    """A run's folder, an exported folder or file; RUN+RUN is one ensemble."""
    images: Word[list[str]]
    """Image files and folders; - reads an image, or names of images, a line each, from standard input."""
    out: Place | None = None
    """A .csv or .jsonl file; an .npz has the probabilities and logits of all classes."""
    features: Boolean = False
    """Write the features before the heads into the .npz file as well."""
    overwrite: Overwrite = False
    coverage: Number | None = None
    """How often sets hold the true class; null is 0.95."""
    max_error_rate: Number | None = None
    """Largest share of wrong predictions among those not deferred; null is 0.05."""
    sets: Sets = "marginal"
    """marginal, classwise, aps or raps sets."""
    tta: Augmentations = "none"
    """flip averages over the image and its mirror image, crops over its middle and corners."""
    weights: Weights = "equal"
    """fitted: weights of an ensemble's runs that fit their validation images."""
    batch_size: BatchSize = 64
    """Images in a batch."""
    workers: Annotated[Integer, Field(ge=0, le=MOST_WORKERS)] = 0
    """Processes that decode images."""
    checkpoint: Checkpoint = "last"
    """The last checkpoint, or the best on the validation set."""
    precision: Precision = "32-true"
    """bf16-mixed is faster where the device has units for it."""
    download: Download = False


COMMAND = Command("predict", "Predict classes, calibrated confidence and uncertainty of new images.", (Options,))


def run(words: list[str]) -> int:
    """``mixmo predict RUN IMAGES…|FOLDER|- [--out FILE]``; 1 if some files cannot be read."""
    (chosen,), _ = COMMAND.read(words)
    images, names = _images(chosen.images)
    out = None if chosen.out is None else Path(chosen.out)
    if chosen.features and (out is None or out.suffix.lower() != ".npz"):
        raise InputError("--features are written into an .npz file; name one with --out.")
    predictor = Predictor(chosen.model, **{key: getattr(chosen, key) for key in PREDICTOR})
    if predictor.uncalibrated:
        kept = "thresholds are 0.5" if predictor.multi_label else "confidence, set and defer are empty"
        logger.warning("%s: %s", kept, predictor.uncalibrated)
    unreadable: dict[int, str] = {}
    if out is not None and any(os.path.isfile(name) and os.path.samefile(name, out) for name in names if out.exists()):
        raise InputError(f"--out {printable(str(out))} is one of the images; choose another file.")
    with open_writer(out, chosen.overwrite, LABEL_COLUMNS if predictor.multi_label else COLUMNS) as write:
        batches = predictor.stream(images, chosen.batch_size, chosen.workers)
        console = Console(stderr=True)
        hidden = not console.is_terminal or (out is None and sys.stdout.isatty())  # a bar would run into the rows
        count = math.ceil(len(images) / chosen.batch_size)
        for numbers, logits, features, errors in track(batches, "predicting", count, console=console, disable=hidden):
            unreadable |= errors
            if numbers:
                write(predictor.interpret(logits, [names[number] for number in numbers], features))
    if out is not None:
        print(f"written: {printable(str(out))}, {len(images) - len(unreadable)} images")
    return _report_unreadable(unreadable, names)


def _images(words: Sequence[str]) -> tuple[list[AnyImage], list[str]]:
    """Return the images and their names."""
    if list(words) != ["-"]:
        files = files_below(words)
        return list(files), files
    content = sys.stdin.buffer.read()
    if starts_like_image(content[:SIGNATURE]):
        return [content], ["standard input"]
    files = files_below(line for line in content.decode("utf-8", "surrogateescape").splitlines() if line.strip())
    if not files:
        raise InputError("standard input holds neither an image nor names of images.")
    return list(files), files


def _report_unreadable(unreadable: dict[int, str], names: Sequence[str]) -> int:
    """Name what cannot be read; return the exit code."""
    if not unreadable:
        return 0
    print(f"mixmo: {len(unreadable)} of {len(names)} images cannot be read:", file=sys.stderr)
    for number, why in list(unreadable.items())[:SHOWN]:
        print(f"  {message(f'{names[number]}: {why}')}", file=sys.stderr)
    if len(unreadable) > SHOWN:
        print(f"  and {len(unreadable) - SHOWN} more", file=sys.stderr)
    return 1
