"""Log messages about images, and silencing of the libraries that read them."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from mixmo.escaping import printable

Item = TypeVar("Item")

logger = logging.getLogger("mixmo")

PROGRESS_DELAY = 3.0
"""Seconds after which the progress of listing a folder is logged."""

READERS = ("PIL", "tifffile", "pydicom")
"""Libraries that log messages and warnings about single images."""

SILENT = logging.CRITICAL + 1
"""A log level above all messages."""

_LOGGED: set[str] = set()


def reset_warnings() -> None:
    """Let :func:`warn_once` log all warnings again, for a new run."""
    _LOGGED.clear()


def warn_once(text: str, about: str = "") -> None:
    """Log a warning once per run, or only the first one about a subject, since many images share a flaw."""
    if (key := about or text) not in _LOGGED:
        _LOGGED.add(key)
        logger.warning(printable(text))


def list_some(names: Sequence[str], limit: int = 3) -> str:
    """Return the first names as text, and the number of the others.

    Example:
        >>> list_some(["ape", "bat", "cow", "doe"])
        'ape, bat, cow and 1 more'
    """
    shown = ", ".join(printable(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def log_progress(entries: Iterable[Item], where: str) -> Iterator[Item]:
    """Yield a folder's entries, and log progress if this takes more than a few seconds."""
    due = time.monotonic() + PROGRESS_DELAY
    for number, entry in enumerate(entries):
        if number % 256 == 0 and time.monotonic() > due:
            logger.warning("still listing %s: %d entries so far", printable(where), number)
            due = time.monotonic() + 5 * PROGRESS_DELAY
        yield entry


@contextmanager
def log_level(level: int, *names: str) -> Iterator[None]:
    """Set the level of loggers within the block."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)


@contextmanager
def ignore_image_warnings() -> Iterator[None]:
    """Silence the messages and warnings of Pillow and the other readers within the block.

    This affects the whole process, so only the command line and worker processes may use it.
    """
    with log_level(SILENT, *READERS), warnings.catch_warnings():
        silence_readers()
        yield


def silence_readers() -> None:
    """Silence Pillow and the other readers for the rest of a worker process."""
    for name in READERS:
        logging.getLogger(name).setLevel(SILENT)
    warnings.filterwarnings("ignore", module=rf"({'|'.join(READERS)})\b")
