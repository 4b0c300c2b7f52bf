"""Images that are both held out and trained on."""

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

MOST_FILES = 2**18
"""Largest number of files that is searched, since those of equal size have to be read."""
START = 2**12
"""Bytes at the start of a file, which distinguish most files of equal size."""

Key = Callable[[int], object]
"""Returns a value that is the same for equal images, or ``None`` if one cannot be read."""


def find_duplicates(held_out: Source, train: Source) -> list[tuple[int, int]]:
    """Return the indices of equal images (same bytes of a file, or same pixels of an array) in two sources.

    For each image of ``held_out`` that is also in ``train`` it is its index and the first index there. Files are
    compared by size, then by their beginnings, and only the remaining ones in full; more than :data:`MOST_FILES`, and
    images that are neither files nor arrays, are not compared.

    Example:
        >>> images = ArrayImages(np.array([[[1]], [[2]], [[1]]], np.uint8), "image")
        >>> source = Source(np.array([0, 1, 0]), ["a", "b"], images)
        >>> find_duplicates(source.subset(np.array([2])), source.subset(np.array([1, 0])))
        [(0, 1)]
    """
    sides = (held_out, train)
    places: list[Sequence[int]] = [range(len(side)) for side in sides]
    found: list[dict[int, object]] = [{}, {}]
    for own, other in zip(*map(_keys, sides), strict=False):
        found = [{place: key(side.number(place)) for place in known}
                 for side, key, known in zip(sides, (own, other), places, strict=True)]  # fmt: skip
        common = set(found[0].values()) & set(found[1].values()) - {None}
        found = [{place: value for place, value in each.items() if value in common} for each in found]
        places = [list(each) for each in found]
    first = {value: place for place, value in reversed(found[1].items())}
    return [(place, first[value]) for place, value in found[0].items()]


def _keys(source: Source) -> Sequence[Key]:
    """Return the keys by which images are compared, the cheapest first."""
    images = source.images
    if isinstance(images, ArrayImages):
        pixels = images.pixels
        return (lambda number: (pixels.shape[1:], _hash(np.ascontiguousarray(pixels[number]).data)),)
    if not isinstance(images, FileImages) or len(source) > MOST_FILES:
        return ()

    def of_file(read: Callable[[str], object]) -> Key:
        def key(number: int) -> object:
            try:
                return read(os.path.join(images.root, images.paths[number]))
            except (OSError, InputError):  # reported where images are decoded
                return None

        return key

    return of_file(os.path.getsize), of_file(_start), of_file(lambda path: _hash(read_file(path)))


def _start(path: str) -> bytes:
    check_regular(path)
    with open(path, "rb") as file:
        return _hash(file.read(START))


def _hash(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def warn_of_duplicates(data: DataModule) -> None:
    """Warn of a run's held-out images that are also in another of its splits, byte for byte."""
    parts, texts, names = data.sources, list[str](), list[str]()
    for split, other in (("test", "train"), ("test", "validation"), ("validation", "train")):
        if split in parts and other in parts and (found := find_duplicates(parts[split], parts[other])):
            known = {"train": "training"}.get(other, other)
            texts.append(f"{len(found)} of {len(parts[split])} {split} images are {known} images as well")
            names += [f"{parts[split].name(own)} is {parts[other].name(twin)}" for own, twin in found]
    if texts:
        warn_once(
            f"{', and '.join(texts)}, byte for byte ({list_some(names)}), which makes results look better than they "
            "are; remove them from one side, or give equal images one group."
        )
