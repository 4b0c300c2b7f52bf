"""Labelled images that can be read by index."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mixmo.data.decoding import explain_error, image_pixels, to_size
from mixmo.data.labels import check_look_alike, rarest_labels
from mixmo.data.messages import list_some, warn_once
from mixmo.errors import InputError
from mixmo.escaping import printable


class Images(Protocol):
    """Unlabelled images; can be pickled, since worker processes read them."""

    def read(self, index: int) -> Image.Image | np.ndarray | bytes:
        """Return an image, an array of its pixels, or the content of its file."""

    def name(self, index: int) -> str:
        """Return an image's name, for errors."""

    def fingerprint(self, times: bool) -> str:
        """Return a text that changes with names, sizes and, with ``times``, modification times."""


@dataclass(frozen=True)
class Source:
    """Labelled images that can be read one by one.

    Attributes:
        labels: (N,) class numbers, int64; for several labels, (N, K) uint8, 1 for each class that an image has.
        classes: The K class names, in the order of their numbers.
        images: The unlabelled images.
        numbers: (N,) indices into ``images``; ``None`` is all of them in order.
        groups: (N,) group numbers (:func:`number_groups`), which splits never divide; ``None`` without groups.
    """

    labels: np.ndarray
    classes: list[str]
    images: Images
    numbers: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.labels.ndim == 2

    @property
    def strata(self) -> np.ndarray:
        """Classes (N,) that splits are stratified by: the rarest of several labels, K if there is none."""
        return rarest_labels(self.labels)

    def read(self, index: int) -> Image.Image | np.ndarray | bytes:
        """Return the i-th image, an array of its pixels, or the content of its file."""
        return self.images.read(self.number(index))

    def name(self, index: int) -> str:
        """Return the i-th image's name."""
        return printable(self.images.name(self.number(index)))

    def subset(self, chosen: np.ndarray) -> Source:
        """Return the source of the images at these indices, or where a mask is true."""
        groups = None if self.groups is None else self.groups[chosen]
        return Source(self.labels[chosen], self.classes, self.images, self._numbers()[chosen], groups)

    def drop_unlabelled(self) -> Source:
        """Return the source without images of class number -1, which have no label."""
        return self if self.labels.min(initial=0) >= 0 else self.subset(self.labels >= 0)

    def join(self, other: Source) -> Source:
        """Return these images followed by those of another source of the same ``images`` and classes."""
        labels, numbers = [self.labels, other.labels], [self._numbers(), other._numbers()]
        return Source(np.concatenate(labels), self.classes, self.images, np.concatenate(numbers))

    def renumber(self, classes: list[str], where: str) -> Source:
        """Renumber the labels by other classes, matched by name, and warn of those without images."""
        if self.classes == classes:
            return self
        check_look_alike([*self.classes, *classes], f"the training set with {where}")
        if unknown := sorted(set(self.classes) - set(classes)):
            near = next(((one, two) for one in unknown for two in classes if one.casefold() == two.casefold()), None)
            hint = "" if near is None else f" ({' and '.join(map(printable, near))} differ in capitals)"
            raise InputError(
                f"{where} has classes that the training set lacks, {list_some(unknown)}{hint}; remove them, or add "
                "them to the training set."
            )
        if missing := sorted(set(classes) - set(self.classes)):
            warn_once(f"{where} has no images of {list_some(missing)}, which the training set has.")
        numbers = np.array([classes.index(name) for name in self.classes], dtype=np.int64)
        labels = numbers[self.labels] if not self.multi_label else np.zeros((len(self), len(classes)), np.uint8)
        if self.multi_label:
            labels[:, numbers] = self.labels
        return replace(self, labels=labels, classes=classes)

    def fingerprint(self, times: bool = True) -> str:
        """Return a SHA-256 (hexadecimal) that changes with the images, their order, labels or classes.

        Nothing is decoded: arrays are hashed by value, files by name, size and, with ``times``, modification time;
        without it, copies of the files have the same fingerprint.
        """
        numbers = b"" if self.numbers is None else self.numbers.astype(np.int64).tobytes()
        labels = self.labels.astype(np.int64).tobytes()
        groups = [] if self.groups is None else [self.groups]
        return hash_parts([self.images.fingerprint(times), json.dumps(self.classes), labels, numbers, *groups])

    def _numbers(self) -> np.ndarray:
        return np.arange(len(self.labels)) if self.numbers is None else self.numbers

    def number(self, index: int) -> int:
        """Return the i-th image's index into ``images``."""
        return int(index if self.numbers is None else self.numbers[index])


def number_groups(values: Iterable[Any]) -> np.ndarray:
    """Return a number (N,) for the group of each image, equal for equal values, in other splits too.

    Example:
        >>> numbers = number_groups(["ann", "bob", "ann"])
        >>> bool(numbers[0] == numbers[2] != numbers[1]), number_groups(["bob"])[0] == numbers[1]
        (True, np.True_)
    """
    digests = [
        hashlib.blake2b(str(value).encode("utf-8", "surrogateescape"), digest_size=8).digest() for value in values
    ]
    return np.frombuffer(b"".join(digests), dtype="<i8")


def hash_parts(parts: Iterable[str | bytes | np.ndarray]) -> str:
    """Return the SHA-256 (hexadecimal) of a sequence of texts, bytes and arrays.

    Example:
        >>> hash_parts(["ab", "c"]) == hash_parts(["a", "bc"])
        False
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            content, kind = np.ascontiguousarray(part).tobytes(), f"{part.dtype.str}{part.shape}"
        else:
            content = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
            kind = ""
        sha.update(f"{kind}{len(content)} ".encode())
        sha.update(content)
    return sha.hexdigest()


def spread_indices(count: int) -> list[int]:
    """Return up to eight evenly spread indices below ``count``, including the first and last, to sample a dataset.

    Example:
        >>> spread_indices(15)
        [0, 2, 4, 6, 8, 10, 12, 14]
    """
    return sorted({round(index) for index in np.linspace(0, count - 1, 8)})


def stamp(file: str, times: bool) -> str:
    """Return a file's size and, with ``times``, modification time; empty if it is missing, which reading reports."""
    try:
        status = os.stat(file)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns if times else ''}"


@dataclass(frozen=True)
class ArrayImages:
    """Images in an array (N, H, W) or (N, H, W, C); their names are the title and a number."""

    pixels: np.ndarray
    title: str

    def read(self, index: int) -> np.ndarray:
        """Return an image's pixels."""
        return np.asarray(self.pixels[index])

    def name(self, index: int) -> str:
        """Return its title and number."""
        return f"{self.title} {index}"

    def fingerprint(self, times: bool) -> str:
        """Return a hash of the pixels."""
        return hash_parts([self.pixels])


def decode(
    source: Source,
    index: int,
    size: tuple[int, int] | None,
    channels: int,
    interpolation: str = "bicubic",
    window: Sequence[float] | None = None,
) -> np.ndarray:
    """Return one image as uint8 (H, W, C), converted to C channels and, if given, scaled to a size.

    Channels and window are those of :func:`image_pixels`, size and interpolation those of :func:`to_size`. Warnings of
    Pillow are not silenced.

    Example:
        >>> source = Source(np.zeros(1, np.int64), ["a"], ArrayImages(np.zeros((1, 8, 6), np.uint8), "image"))
        >>> decode(source, 0, None, 3).shape
        (8, 6, 3)
    """
    try:
        pixels = image_pixels(source.read(index), channels, window, partial(source.name, index), size)
        return pixels if size is None else to_size(pixels, size, interpolation)
    except Exception as error:  # Pillow and its codecs may raise anything for damaged content
        raise InputError(f"image {source.name(index)} cannot be read: {explain_error(error)}.") from error
