"""Silencing of Pillow's messages about single images."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ignore_image_warnings() -> Iterator[None]:
    """Leave out what Pillow warns of and logs about single images.

    Filters and levels are the process's: only the command line and workers that decode, whose process is their own, may
    change them. In a user's process they are the user's.
    """
    pillow = logging.getLogger("PIL")
    level = pillow.level
    try:
        with warnings.catch_warnings():
            silence_pillow()
            yield
    finally:
        pillow.setLevel(level)


def silence_pillow(worker: int = 0) -> None:
    """Have Pillow say nothing from now on, in a worker process."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"PIL\b")
