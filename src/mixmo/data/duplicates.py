"""Search for held-out images that are also trained on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence

import numpy as np

from mixmo.data.folders import FileImages, read_file
from mixmo.data.messages import list_some, warn_once
from mixmo.data.module import DataModule
from mixmo.data.sources import ArrayImages, Source
from mixmo.errors import InputError
from mixmo.files import check_regular

MAX_FILES = 2**18
"""Largest number of files to compare, since those of equal size have to be read."""
PREFIX = 2**12
"""Bytes at the start of a file, which distinguish most files of equal size."""

Key = Callable[[int], object]
"""Returns a value that equal images share, or ``None`` for an image that cannot be read."""


def find_duplicates(held_out: Source, train: Source) -> list[tuple[int, int]]:
    """Return (held-out index, first training index) of each held-out image that equals a training image.

    Equal images have the same bytes as files, or the same pixels as arrays. Files are compared by size, then by their
    first bytes, and only the remaining ones in full. More than :data:`MAX_FILES` files, or images that are neither
    files nor arrays, are not compared.

    Example:
        >>> images = ArrayImages(np.array([[[1]], [[2]], [[1]]], np.uint8), "image")
        >>> source = Source(np.array([0, 1, 0]), ["a", "b"], images)
        >>> find_duplicates(source.subset(np.array([2])), source.subset(np.array([1, 0])))
        [(0, 1)]
    """
    sources = (held_out, train)
    candidates: list[Sequence[int]] = [range(len(source)) for source in sources]
    values: list[dict[int, object]] = [{}, {}]
    for keys in zip(*map(_list_keys, sources), strict=False):
        values = [{index: key(source.number(index)) for index in indices}
                  for source, key, indices in zip(sources, keys, candidates, strict=True)]  # fmt: skip
        common = set(values[0].values()) & set(values[1].values()) - {None}
        values = [{index: value for index, value in each.items() if value in common} for each in values]
        candidates = [list(each) for each in values]
    first = {value: index for index, value in reversed(values[1].items())}
    return [(index, first[value]) for index, value in values[0].items()]


def _list_keys(source: Source) -> Sequence[Key]:
    """Return the keys to compare images by, the cheapest first."""
    images = source.images
    if isinstance(images, ArrayImages):
        pixels = images.pixels
        return (lambda number: (pixels.shape[1:], _hash(np.ascontiguousarray(pixels[number]).data)),)
    if not isinstance(images, FileImages) or len(source) > MAX_FILES:
        return ()

    def of_file(read: Callable[[str], object]) -> Key:
        def key(number: int) -> object:
            try:
                return read(os.path.join(images.root, images.paths[number]))
            except (OSError, InputError):  # reported when images are decoded
                return None

        return key

    return of_file(os.path.getsize), of_file(_hash_prefix), of_file(lambda path: _hash(read_file(path)))


def _hash_prefix(path: str) -> bytes:
    check_regular(path)
    with open(path, "rb") as file:
        return _hash(file.read(PREFIX))


def _hash(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def warn_of_duplicates(data: DataModule) -> None:
    """Warn of held-out images of a run that are also in another of its splits."""
    sources, texts, names = data.sources, list[str](), list[str]()
    for split, other in (("test", "train"), ("test", "validation"), ("validation", "train")):
        if split in sources and other in sources and (pairs := find_duplicates(sources[split], sources[other])):
            kind = {"train": "training"}.get(other, other)
            texts.append(f"{len(pairs)} of {len(sources[split])} {split} images are {kind} images as well")
            names += [f"{sources[split].name(index)} is {sources[other].name(twin)}" for index, twin in pairs]
    if texts:
        warn_once(
            f"{', and '.join(texts)}, byte for byte ({list_some(names)}), which makes results look better than they "
            "are; remove them from one split, or give equal images one group."
        )
