"""Decoding of a whole dataset in threads, and the report of unreadable images."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL

from mixmo.cache import cache_folder, keep_json, read_json
from mixmo.config.data_settings import DataSettings
from mixmo.data.decoding import explain_error
from mixmo.data.levels import LIMIT
from mixmo.data.messages import logger
from mixmo.data.sources import Source, decode, hash_parts
from mixmo.errors import InputError

BLOCK = 1024
"""Images handed to the threads at once."""

SHOWN, REASONS = 10, 3
"""Largest number of images that are named for each reason why they cannot be read, and of reasons."""


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

    A success is stored in the user's cache, by names, sizes and modification times: a run that is resumed, or another
    one on the same images, starts at once.
    """
    content, numbers = source.images.fingerprint(times=True), b"" if source.numbers is None else source.numbers
    form = PIL.__version__, str(size), str(settings.channels), str(settings.window), os.environ.get(LIMIT, "")
    about = hash_parts([*form, os.path.abspath(source.name(0)), content, numbers])
    kept = cache_folder("readable") / f"{about}.json"
    known = read_json(kept) if content else None
    if known and known.get("images") == len(source):
        return source
    logger.info("checking once that all %d images can be read", len(source))
    unreadable = _read(source, size, settings, lambda index, pixels: None)
    if content and not unreadable:  # an unreadable image, such as without permission, may be readable next time
        keep_json(kept, {"images": len(source)})
    return _without(source, unreadable, settings.on_error)


def decode_all(
    source: Source, size: tuple[int, int], scaled: bool, settings: DataSettings
) -> tuple[np.ndarray, Source]:
    """Return all images that can be read, (N, H, W, C) uint8, and the source of them.

    Those of another size (H, W) are refused unless they are to be scaled to it.
    """
    try:
        images = np.empty((len(source), *size, settings.channels), dtype=np.uint8)
    except MemoryError as error:
        raise InputError(
            f"{len(source)} images of {size[0]}×{size[1]} do not fit in memory; stream them with "
            "--data.in_memory false, or lower --data.image_size."
        ) from error

    def keep(index: int, pixels: np.ndarray) -> None:
        if pixels.shape != images.shape[1:]:
            raise InputError(
                f"image {source.name(index)} is {pixels.shape[0]}×{pixels.shape[1]}, but the first one is "
                f"{size[0]}×{size[1]}; bring all to one size with --data.image_size."
            )
        images[index] = pixels

    unreadable = _read(source, size if scaled else None, settings, keep)
    kept = _without(source, unreadable, settings.on_error)
    return np.delete(images, sorted(unreadable), axis=0) if unreadable else images, kept


def _read(
    source: Source, size: tuple[int, int] | None, settings: DataSettings, keep: Callable[[int, np.ndarray], None]
) -> dict[int, str]:
    """Hand each image to ``keep``; return why others cannot be read, by index."""

    def one(index: int) -> str | None:
        try:
            pixels = decode(source, index, size, settings.channels, settings.interpolation, settings.window)
        except InputError as error:
            return _strip_name(error)
        keep(index, pixels)
        return None

    found: dict[int, str] = {}
    # Pillow decodes without holding the interpreter's lock; a user's Dataset may not be thread-safe.
    with ThreadPoolExecutor(1 if getattr(source.images, "one_by_one", False) else None) as pool:
        for start in range(0, len(source), BLOCK):
            block = range(start, min(start + BLOCK, len(source)))
            found.update((i, text) for i, text in zip(block, pool.map(one, block), strict=True) if text)
    return found


def _strip_name(error: InputError) -> str:
    """Return why an image cannot be read, without its name."""
    return explain_error(error.__cause__ or error)


def _without(source: Source, unreadable: dict[int, str], on_error: str) -> Source:
    if not unreadable:
        return source
    if on_error == "raise" or len(unreadable) == len(source):
        raise _unreadable_error(source, unreadable)
    count, shown = len(unreadable), _list_unreadable(source, unreadable)
    logger.warning("left out %d of %d images, which cannot be read: %s", count, len(source), shown)
    return source.subset(np.delete(np.arange(len(source)), list(unreadable)))


def _unreadable_error(source: Source, unreadable: dict[int, str]) -> InputError:
    many, alike = len(unreadable) > 1, len(set(unreadable.values())) == 1
    them = "them" if many else "it"
    if many and alike and len(unreadable) == len(source):
        advice = ""  # of all images it is rather a setting that is wrong, which the reason names
    elif len(unreadable) == len(source):
        advice = f"; fix {them}"
    else:
        advice = f"; fix or remove {them}, or continue without {them} with --data.on_error skip"
    if many:
        what, why = f"{len(unreadable)} of {len(source)} images", _list_unreadable(source, unreadable)
    else:
        ((index, why),) = unreadable.items()
        what = f"image {source.name(index)}"
    return InputError(f"{what} cannot be read: {why}{advice}.")


def _list_unreadable(source: Source, unreadable: dict[int, str]) -> str:
    """Return the reasons, each with the first images that cannot be read for it."""
    names: dict[str, list[str]] = {}
    for index, text in unreadable.items():
        names.setdefault(text, []).append(source.name(index))
    shown = [
        f"{', '.join(own[:SHOWN])}{f' and {len(own) - SHOWN} more' if len(own) > SHOWN else ''} ({text})"
        for text, own in list(names.items())[:REASONS]
    ]
    return ", ".join(shown) + (f" and others for {len(names) - REASONS} more reasons" if len(names) > REASONS else "")
