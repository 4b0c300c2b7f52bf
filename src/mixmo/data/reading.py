"""Decoding of whole datasets in threads, with a report of unreadable images."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL

from mixmo.cache import cache_folder, cache_json, read_json
from mixmo.config.data_settings import DataSettings
from mixmo.data.decoding import explain_error
from mixmo.data.levels import LIMIT
from mixmo.data.messages import list_some, logger
from mixmo.data.sources import Source, decode, hash_parts
from mixmo.errors import InputError

BLOCK = 1024
"""Images passed to the threads at once."""

MAX_NAMES, MAX_REASONS = 10, 3
"""How many unreadable images are named for each reason, and how many reasons."""


def first_size(source: Source, settings: DataSettings) -> tuple[int, int]:
    """Return (H, W) of the first image that can be read."""
    unreadable = {}
    for index in range(len(source)):
        try:
            height, width, _ = decode(source, index, None, settings.channels, window=settings.window).shape
        except InputError as error:
            unreadable[index] = _strip_name(error)
        else:
            return height, width
    raise _unreadable_error(source, unreadable)


def find_readable(source: Source, size: tuple[int, int] | None, settings: DataSettings) -> Source:
    """Decode every image once, and return the source of those that can be read.

    If all can, this is stored in the user's cache, by names, sizes and modification times, so that later runs on the
    same images skip it.
    """
    content, numbers = source.images.fingerprint(times=True), b"" if source.numbers is None else source.numbers
    form = PIL.__version__, str(size), str(settings.channels), str(settings.window), os.environ.get(LIMIT, "")
    key = hash_parts([*form, os.path.abspath(source.name(0)), content, numbers])
    path = cache_folder("readable") / f"{key}.json"
    cached = read_json(path) if content else None
    if cached and cached.get("images") == len(source):
        return source
    logger.info("checking once that all %d images can be read", len(source))
    unreadable = _read(source, size, settings, lambda index, pixels: None)
    if content and not unreadable:  # failures are not cached: a missing permission may be granted
        cache_json(path, {"images": len(source)})
    return _drop_unreadable(source, unreadable, settings.on_error)


def decode_all(
    source: Source, size: tuple[int, int], scaled: bool, settings: DataSettings
) -> tuple[np.ndarray, Source]:
    """Return all images that can be read, (N, H, W, C) uint8, and their source.

    Unless ``scaled``, images of another size than (H, W) are refused.
    """
    try:
        images = np.empty((len(source), *size, settings.channels), dtype=np.uint8)
    except MemoryError as error:
        raise InputError(
            f"{len(source)} images of {size[0]}×{size[1]} do not fit in memory; stream them with "
            "data.in_memory: false, or lower data.image_size."
        ) from error

    def store(index: int, pixels: np.ndarray) -> None:
        if pixels.shape != images.shape[1:]:
            raise InputError(
                f"image {source.name(index)} is {pixels.shape[0]}×{pixels.shape[1]}, but the first one is "
                f"{size[0]}×{size[1]}; scale all to one size with data.image_size."
            )
        images[index] = pixels

    unreadable = _read(source, size if scaled else None, settings, store)
    readable = _drop_unreadable(source, unreadable, settings.on_error)
    return np.delete(images, sorted(unreadable), axis=0) if unreadable else images, readable


def _read(
    source: Source, size: tuple[int, int] | None, settings: DataSettings, store: Callable[[int, np.ndarray], None]
) -> dict[int, str]:
    """Pass each decoded image to ``store``; return the reasons why others cannot be read, by index."""

    def decode_one(index: int) -> str | None:
        try:
            pixels = decode(source, index, size, settings.channels, settings.interpolation, settings.window)
        except InputError as error:
            return _strip_name(error)
        store(index, pixels)
        return None

    reasons: dict[int, str] = {}
    # Pillow releases the GIL while it decodes.
    with ThreadPoolExecutor(1 if getattr(source.images, "one_by_one", False) else None) as pool:
        for start in range(0, len(source), BLOCK):
            block = range(start, min(start + BLOCK, len(source)))
            reasons.update((i, text) for i, text in zip(block, pool.map(decode_one, block), strict=True) if text)
    return reasons


def _strip_name(error: InputError) -> str:
    """Return why an image cannot be read, without the image's name."""
    return explain_error(error.__cause__ or error)


def _drop_unreadable(source: Source, unreadable: dict[int, str], on_error: str) -> Source:
    if not unreadable:
        return source
    if on_error == "raise" or len(unreadable) == len(source):
        raise _unreadable_error(source, unreadable)
    text = _list_unreadable(source, unreadable)
    logger.warning("left out %d of %d images, which cannot be read: %s", len(unreadable), len(source), text)
    return source.subset(np.delete(np.arange(len(source)), list(unreadable)))


def _unreadable_error(source: Source, unreadable: dict[int, str]) -> InputError:
    many, them = len(unreadable) > 1, "them" if len(unreadable) > 1 else "it"
    if len(unreadable) < len(source):
        advice = f"; fix or remove {them}, or continue without {them} with data.on_error: skip"
    else:  # one reason for all of many images is probably a wrong setting, which the reason names
        advice = "" if many and len(set(unreadable.values())) == 1 else f"; fix {them}"
    if many:
        what, why = f"{len(unreadable)} of {len(source)} images", _list_unreadable(source, unreadable)
    else:
        ((index, why),) = unreadable.items()
        what = f"image {source.name(index)}"
    return InputError(f"{what} cannot be read: {why}{advice}.")


def _list_unreadable(source: Source, unreadable: dict[int, str]) -> str:
    """Return the first reasons, each with the first images that cannot be read for it."""
    names: dict[str, list[str]] = {}
    for index, text in unreadable.items():
        names.setdefault(text, []).append(source.name(index))
    more = len(names) - MAX_REASONS
    shown = [f"{list_some(images, MAX_NAMES)} ({text})" for text, images in list(names.items())[:MAX_REASONS]]
    return ", ".join(shown) + (f" and others for {more} more reasons" if more > 0 else "")
