"""``mixmo predict``: classes, calibrated confidence, uncertainty and conformal sets for new images."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from mixmo.cli.options import add_flag, add_overwrite
from mixmo.config.data_settings import LARGEST_BATCH, MOST_WORKERS
from mixmo.config.plan import parse
from mixmo.data.decoding import SIGNATURE, starts_like_image
from mixmo.deploy.images import AnyImage, files_below
from mixmo.deploy.predictor import Predictor
from mixmo.deploy.writing import writing_rows
from mixmo.errors import InputError
from mixmo.names import message, printable

logger = logging.getLogger("mixmo")

Batch = tuple[list[int], Tensor, dict[int, str]]

SHOWN = 20
"""Unreadable files that are named."""

ABOUT = "Predict classes, calibrated confidence and uncertainty of new images."


def run(words: list[str]) -> int:
    """``mixmo predict RUN IMAGES…|FOLDER|- [--out FILE]``; 1 if some files cannot be read."""
    chosen = parse(_parser(), words)
    for key, least, most in (("batch_size", 1, LARGEST_BATCH), ("workers", 0, MOST_WORKERS)):
        if not least <= chosen[key] <= most:
            raise InputError(f"--{key} is {chosen[key]}; it lies between {least} and {most}.")
    images, names = _images(chosen.images)
    how = (chosen.checkpoint, chosen.coverage, chosen.risk, chosen.precision, chosen.download, chosen.trust)
    predictor = Predictor(chosen.model, *how)
    if predictor.uncalibrated:
        logger.warning("confidence, set and ask stay empty: %s", predictor.uncalibrated)
    out = None if chosen.out is None else Path(chosen.out)
    unreadable: dict[int, str] = {}
    if out is not None and any(os.path.isfile(name) and os.path.samefile(name, out) for name in names if out.exists()):
        raise InputError(f"--out {printable(str(out))} is one of the images; choose another file.")
    with writing_rows(out, chosen.overwrite) as write:
        batches = predictor.stream(images, chosen.batch_size, chosen.workers)
        rows_shown = out is None and sys.stdout.isatty()  # a bar would run into them
        for numbers, logits, errors in batches if rows_shown else _with_bar(batches, len(images)):
            unreadable |= errors
            for row in predictor.judge(logits, [names[number] for number in numbers]).rows():
                write(row)
    if out is not None:
        print(f"written: {printable(str(out))}, {len(images) - len(unreadable)} images")
    return _said(unreadable, names)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="mixmo predict", exit_on_error=False, description=ABOUT)
    parser.add_argument("model", type=str, help="a run's folder, an exported folder or file; RUN+RUN is one ensemble")
    parser.add_argument(
        "images", nargs="+", type=str,
        help="image files and folders; - reads an image, or names of images, a line each, from standard input",
    )  # fmt: skip
    parser.add_argument("--out", type=str | None, default=None, help="a .csv, .jsonl or .parquet file")
    add_overwrite(parser)
    parser.add_argument("--coverage", type=float, default=0.95, help="how often sets hold the true class")
    parser.add_argument("--risk", type=float, default=0.05, help="share of wrong answers where nobody is asked")
    parser.add_argument("--batch_size", type=int, default=64, help="images in a batch")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--checkpoint", type=str, default="last", help="last, or best on the validation set")
    parser.add_argument("--precision", type=str, default="32-true", help="32-true or bf16-mixed")
    add_flag(parser, "--download", help="allow downloads of what a network is built from")
    add_flag(parser, "--trust", help="open a .pt2 file, which can run code of its maker's")
    return parser


def _with_bar(batches: Iterable[Batch], images: int) -> Iterator[Batch]:
    """Yield the batches, with a progress bar where there is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("predicting", total=images)
        for batch in batches:
            yield batch
            numbers, _, errors = batch
            progress.advance(task, len(numbers) + len(errors))


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


def _said(unreadable: dict[int, str], names: Sequence[str]) -> int:
    """Name what cannot be read; return the exit code."""
    if not unreadable:
        return 0
    print(f"mixmo: {len(unreadable)} of {len(names)} images cannot be read:", file=sys.stderr)
    for number, why in list(unreadable.items())[:SHOWN]:
        print(f"  {message(f'{names[number]}: {why}')}", file=sys.stderr)
    if len(unreadable) > SHOWN:
        print(f"  and {len(unreadable) - SHOWN} more", file=sys.stderr)
    return 1
