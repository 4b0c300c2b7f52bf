"""Log messages while images are listed and decoded."""

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

PATIENCE = 3.0
"""Seconds after which a listing's progress is logged."""

READERS = ("PIL", "tifffile", "pydicom")
"""Libraries that log or warn about single images."""

_LOGGED: set[str] = set()


def start_over() -> None:
    """Log again what was logged once: another run begins, maybe on other images."""
    _LOGGED.clear()


def warn_once(text: str, about: str = "") -> None:
    """Log a warning, or the first one about a subject, once per run: many images share a flaw."""
    if (key := about or text) not in _LOGGED:
        _LOGGED.add(key)
        logger.warning(printable(text))


def list_some(names: Sequence[str]) -> str:
    """Return the first names as text.

    Example:
        >>> list_some(["ape", "bat", "cow", "doe"])
        'ape, bat, cow and 1 more'
    """
    shown = ", ".join(printable(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def log_progress(entries: Iterable[Item], where: str) -> Iterator[Item]:
    """Yield a folder's entries; log progress if that takes more than a few seconds."""
    due = time.monotonic() + PATIENCE
    for number, entry in enumerate(entries):
        if number % 256 == 0 and time.monotonic() > due:
            logger.warning("still listing %s: %d entries so far", printable(where), number)
            due = time.monotonic() + 5 * PATIENCE
        yield entry


@contextmanager
def ignore_image_warnings() -> Iterator[None]:
    """Silence warnings and log messages of Pillow and the other readers about single images.

    Filters and levels belong to the process: only the command line and workers that decode, which have a process to
    themselves, may change them.
    """
    levels = {name: logging.getLogger(name).level for name in READERS}
    try:
        with warnings.catch_warnings():
            silence_pillow()
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def silence_pillow() -> None:
    """Silence Pillow and the other readers from now on, in a worker process."""
    for name in READERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=rf"({'|'.join(READERS)})\b")
