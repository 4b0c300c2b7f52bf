"""Limits on the size of images, and conversion of pixel values to 8 bits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from mixmo.data.messages import warn_once
from mixmo.errors import InputError

MAX_PIXELS = 2**26
"""Images of more pixels are refused before they are allocated, unless ``LIMIT`` sets another limit."""

LIMIT = "MIXMO_MAX_MEGAPIXELS"
"""The environment variable with the largest number of pixels, in 10^6."""

MAX_BYTES = 2**28
"""Larger files are refused before they are read."""

FEW_LEVELS = 18
"""Fewer grey levels than this show little of a 16-bit image; values of 12 bits leave 17."""


SET_WINDOW = "set data.window to [LOW, HIGH] to"


def max_pixels() -> int:
    """Return the largest number of pixels of an image; if ``LIMIT`` sets it, raise Pillow's own limit as well."""
    if (text := os.environ.get(LIMIT)) is None:
        return MAX_PIXELS
    try:
        limit = int(float(text) * 10**6)
    except (ValueError, OverflowError):
        limit = 0
    if limit < 1:
        raise InputError(f"the environment variable {LIMIT} is {text!r}; it is a number of megapixels, such as 200")
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limit)
    return limit


def check_size(width: int, height: int, bands: int = 1) -> None:
    """Refuse an image of no or too many pixels; bands beyond four count as further pixels."""
    if width * height * max(bands, 4) > 4 * max_pixels():
        raise too_large()
    if not width * height * bands:
        raise InputError("it has no pixels")


def too_large() -> InputError:
    """Return the error for an image of more than :func:`max_pixels`."""
    limit = f"{max_pixels() // 10**6} megapixels"
    return InputError(f"it is an image of more than {limit}; set the environment variable {LIMIT} to read it")


def check_length(size: int) -> None:
    """Refuse a file of too many bytes."""
    if size > MAX_BYTES:
        raise InputError(f"it is a file of {size / 2**20:.0f} MiB, more than the limit of {MAX_BYTES >> 20} MiB")


def to_bytes(
    values: np.ndarray, window: Sequence[float] | None, name: Callable[[], str], cause: str = ""
) -> np.ndarray:
    """Return values as uint8: the window, or 0…65535 for 16 bits, becomes 0…255, rounded; uint8 stays unchanged.

    A warning is logged, once per run, if that leaves an image few grey levels; ``cause`` is why, if the window is not
    ``data.window``.

    Example:
        >>> to_bytes(np.array([0, 1000, 1150, 1200, 5000]), (1000, 1200), lambda: "an image")
        array([  0,   0, 191, 255, 255], dtype=uint8)
    """
    if values.dtype == np.uint8:
        return values
    if window is not None:
        if np.isnan(values).any():
            raise InputError("it has values that are not numbers (NaN)")
        low, high = window
        scaled = ((values.astype(np.float64) - low) * (255 / (high - low))).round()
        levels = np.asarray(scaled.clip(0, 255).astype(np.uint8))
        advice = SET_WINDOW if cause else "check that it is"
        _warn_of_few_levels(values, levels, cause or f"data.window {list(window)} leaves", advice, name)
        return levels
    if values.dtype.kind != "u" or values.dtype.itemsize != 2:
        raise InputError(
            f"its values are {values.dtype}, whose range is not known; set data.window to [LOW, HIGH], the values "
            "that become black and white"
        )
    levels = np.asarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    _warn_of_few_levels(values, levels, "16 bits leave", SET_WINDOW, name)
    return levels


def _warn_of_few_levels(
    values: np.ndarray, levels: np.ndarray, cause: str, advice: str, name: Callable[[], str]
) -> None:
    count = _count_distinct(levels)
    if count < FEW_LEVELS and count < _count_distinct(values):
        warn_once(
            f"{name()} has values from {values.min()} to {values.max()}, of which {cause} {count} of 256 grey levels; "
            f"{advice} the range of all images' values.",
            about="levels",
        )


def _count_distinct(values: np.ndarray) -> int:
    """Return the number of different values; of bytes and 16 bits without sorting, since every image is counted."""
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return int(np.count_nonzero(np.bincount(values.ravel())))
    return len(np.unique(values))
