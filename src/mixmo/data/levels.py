"""Limits of what is read, and pixel values of more than 8 bits as bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from mixmo.data.messages import warn_once
from mixmo.errors import InputError

MAX_PIXELS = 2**26
"""Larger images are refused before their pixels are allocated, unless ``LIMIT`` says otherwise."""

LIMIT = "MIXMO_MAX_MEGAPIXELS"
"""The environment variable that sets another limit, in 10^6 pixels."""

MAX_BYTES = 2**28
"""Larger files are refused before they are read."""

FEW_LEVELS = 18
"""Grey levels below which an image of 16 bits has lost most of what it shows; 12 bits of 16 leave 17."""


def max_pixels() -> int:
    """Return the largest number of pixels that an image may have, and raise Pillow's own limit to it if it is set."""
    if (text := os.environ.get(LIMIT)) is None:
        return MAX_PIXELS
    try:
        limit = int(float(text) * 10**6)
    except (ValueError, OverflowError):
        limit = 0
    if limit < 1:
        raise InputError(f"the environment variable {LIMIT} is {text!r}; it is a number of megapixels, such as 200")
    if Image.MAX_IMAGE_PIXELS is not None:  # Pillow's limit: the variable raises both
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limit)
    return limit


def check_size(width: int, height: int, bands: int = 1) -> None:
    """Refuse an image of no pixels, or of too many; bands beyond four count as more pixels."""
    if width * height * max(bands, 4) > 4 * max_pixels():
        raise too_large()
    if not width * height * bands:
        raise InputError("it has no pixels")


def too_large() -> InputError:
    """Return the error of an image of more than :func:`max_pixels`."""
    limit = f"{max_pixels() // 10**6} megapixels"
    return InputError(f"it is an image of more than {limit}; set the environment variable {LIMIT} to read it")


def check_length(size: int) -> None:
    """Refuse a file of too many bytes."""
    if size > MAX_BYTES:
        raise InputError(f"it is a file of {size / 2**20:.0f} MiB, more than the {MAX_BYTES >> 20} MiB that are read")


def to_bytes(values: np.ndarray, window: Sequence[float] | None, name: Callable[[], str]) -> np.ndarray:
    """Return values as uint8: the window, or of 16 bits 0…65535, becomes 0…255, rounded; uint8 is left alone.

    Where the whole range of 16 bits leaves few levels of what is there, that is logged, once in a process, by name.

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
        return np.asarray(scaled.clip(0, 255).astype(np.uint8))
    if values.dtype.kind != "u" or values.dtype.itemsize != 2:
        raise InputError(
            f"its values are {values.dtype}, whose range is not known; set --data.window '[LOW, HIGH]', the values "
            "that become black and white"
        )
    levels = np.asarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    left = np.count_nonzero(np.bincount(levels.ravel()))
    if left < FEW_LEVELS and left < np.count_nonzero(np.bincount(values.ravel())):
        warn_once(
            f"{name()} has 16-bit values from {values.min()} to {values.max()}, of which {left} of 256 grey levels "
            "are left; set --data.window '[LOW, HIGH]', between which the values of all images lie.",
            about="levels",
        )
    return levels
