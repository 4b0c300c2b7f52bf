"""``mixmo predict``: classes, calibrated confidence, uncertainty and conformal sets of new images."""

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

from mixmo.cli.options import Command, Download, Overwrite, Positional
from mixmo.config.data_settings import MOST_WORKERS, BatchSize
from mixmo.config.hardware import Precision
from mixmo.data.batches import Augmentations
from mixmo.data.decoding import SIGNATURE, starts_like_image
from mixmo.deploy.images import AnyImage, list_images
from mixmo.deploy.predictor import Predictor
from mixmo.deploy.writing import COLUMNS, LABEL_COLUMNS, open_writer
from mixmo.errors import InputError
from mixmo.escaping import message, printable
from mixmo.evaluation.calibration import Weights
from mixmo.metrics.conformal import Sets
from mixmo.runs import Checkpoint
from mixmo.validation import Boolean, FilePath, Integer, Number, settings_class

logger = logging.getLogger("mixmo")

PREDICTOR = (
    "checkpoint", "coverage", "max_error_rate", "precision", "download", "sets", "tta", "weights", "features",
)  # fmt: skip
"""Options passed to :class:`~mixmo.Predictor`."""

MAX_LISTED = 20
"""Maximum number of unreadable files listed."""


@settings_class()
class Options:
    """The network, the images and the output."""

    model: Positional[str]
    """A run's folder, an exported folder or file; RUN+RUN is an ensemble."""
    images: Positional[list[str]]
    """Image files and folders; - reads an image, or paths of images, one per line, from standard input."""
    out: FilePath | None = None
    """A .csv or .jsonl file, or an .npz file with the probabilities and logits of all classes."""
    features: Boolean = False
    """Also write the features before the heads into the .npz file."""
    overwrite: Overwrite = False
    coverage: Number | None = None
    """Probability that a set contains the true class; null is 0.95."""
    max_error_rate: Number | None = None
    """Maximum error rate of predictions that are not deferred; null is 0.05."""
    sets: Sets = "marginal"
    """Kind of conformal sets: marginal, classwise, aps or raps."""
    tta: Augmentations = "none"
    """Test-time augmentation: flip averages over the image and its mirror image, crops over center and corners."""
    weights: Weights = "equal"
    """Weights of an ensemble's runs: equal, or fitted on validation images."""
    batch_size: BatchSize = 64
    """Images per batch."""
    workers: Annotated[Integer, Field(ge=0, le=MOST_WORKERS)] = 0
    """Processes that decode images."""
    checkpoint: Checkpoint = "last"
    """The last checkpoint, or the best on the validation set."""
    precision: Precision = "32-true"
    """bf16-mixed is faster on devices that support it."""
    download: Download = False


COMMAND = Command("predict", "Predict classes, calibrated confidence and uncertainty of new images.", (Options,))


def run(arguments: list[str]) -> int:
    """Run ``mixmo predict RUN IMAGES…|FOLDER|- [--out FILE]``; return 1 if some files cannot be read."""
    (chosen,), _ = COMMAND.parse(arguments)
    images, names = _read_images(chosen.images)
    out = None if chosen.out is None else Path(chosen.out)
    if chosen.features and (out is None or out.suffix.lower() != ".npz"):
        raise InputError("--features needs an .npz file to write to; name one with --out.")
    predictor = Predictor(chosen.model, **{key: getattr(chosen, key) for key in PREDICTOR})
    if predictor.models[0].spec.data.own_transforms:
        raise InputError(
            f"{printable(chosen.model)} was trained on a Dataset with its own transforms, which files lack; predict in "
            "Python: mixmo.Run(PATH).predict([transform(image)])."
        )
    if predictor.uncalibrated:
        consequence = "thresholds are 0.5" if predictor.multi_label else "confidence, set and defer are empty"
        logger.warning("%s: %s", consequence, predictor.uncalibrated)
    unreadable: dict[int, str] = {}
    if out is not None and any(os.path.isfile(name) and os.path.samefile(name, out) for name in names if out.exists()):
        raise InputError(f"--out {printable(str(out))} is one of the images; choose another file.")
    with open_writer(out, chosen.overwrite, LABEL_COLUMNS if predictor.multi_label else COLUMNS) as write:
        batches = predictor.stream(images, chosen.batch_size, chosen.workers)
        console = Console(stderr=True)
        hidden = not console.is_terminal or (out is None and sys.stdout.isatty())  # a bar would mix with the rows
        count = math.ceil(len(images) / chosen.batch_size)
        for numbers, logits, features, errors in track(batches, "predicting", count, console=console, disable=hidden):
            unreadable |= errors
            if numbers:
                write(predictor.interpret(logits, [names[number] for number in numbers], features))
    if out is not None:
        print(f"written: {printable(str(out))}, {len(images) - len(unreadable)} images")
    return _report_unreadable(unreadable, names)


def _read_images(paths: Sequence[str]) -> tuple[list[AnyImage], list[str]]:
    """Return the images and their names."""
    if list(paths) != ["-"]:
        files = list_images(paths)
        return list(files), files
    content = sys.stdin.buffer.read()
    if starts_like_image(content[:SIGNATURE]):
        return [content], ["standard input"]
    files = list_images(line for line in content.decode("utf-8", "surrogateescape").splitlines() if line.strip())
    if not files:
        raise InputError("standard input contains neither an image nor paths of images.")
    return list(files), files


def _report_unreadable(unreadable: dict[int, str], names: Sequence[str]) -> int:
    """List unreadable images; return the exit code."""
    if not unreadable:
        return 0
    print(f"mixmo: {len(unreadable)} of {len(names)} images cannot be read:", file=sys.stderr)
    for number, why in list(unreadable.items())[:MAX_LISTED]:
        print(f"  {message(f'{names[number]}: {why}')}", file=sys.stderr)
    if len(unreadable) > MAX_LISTED:
        print(f"  and {len(unreadable) - MAX_LISTED} more", file=sys.stderr)
    return 1
