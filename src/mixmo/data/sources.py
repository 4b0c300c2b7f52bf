"""Labelled images that can be read by index."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from PIL import Image

from mixmo.data.decoding import explain_error, image_pixels, to_size
from mixmo.data.labels import check_look_alike, rarest_labels
from mixmo.data.messages import list_some, warn_once
from mixmo.errors import InputError
from mixmo.escaping import printable


class Images(Protocol):
    """Where images are: a plain object that can be pickled, since other processes read from it."""

    def read(self, index: int) -> Image.Image | np.ndarray | bytes:
        """Return an image, an array of its pixels, or the content of its file."""

    def name(self, index: int) -> str:
        """Return an image's name, for errors."""

    def fingerprint(self, times: bool) -> str:
        """Return a text that changes with the content: names and sizes, and modification times if asked for."""


@dataclass(frozen=True)
class Source:
    """Labelled images that can be read one by one.

    Attributes:
        labels: (N,) class numbers, int64; if an image may have several, (N, K) uint8, 1 for each that it has.
        classes: The K class names, in the order of their numbers.
        images: Where the images are.
        numbers: (N,) their numbers there; ``None`` is all of them in their order.
        groups: (N,) numbers of their groups, which draws never divide; ``None`` without groups.
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
        """(N,) the classes by which draws are stratified: of several labels the rarest, K if there is none."""
        return rarest_labels(self.labels)

    def read(self, index: int) -> Image.Image | np.ndarray | bytes:
        """Return the i-th image, an array of its pixels, or the content of its file."""
        return self.images.read(self.number(index))

    def name(self, index: int) -> str:
        """Return what the i-th image is called."""
        return printable(self.images.name(self.number(index)))

    def subset(self, chosen: np.ndarray) -> Source:
        """Return the source of the images at these positions, or of those where it is true."""
        groups = None if self.groups is None else self.groups[chosen]
        return Source(self.labels[chosen], self.classes, self.images, self._numbers()[chosen], groups)

    def drop_unlabelled(self) -> Source:
        """Return the source of the images that have a label, whose class number is not -1."""
        return self if self.labels.min(initial=0) >= 0 else self.subset(self.labels >= 0)

    def joined(self, other: Source) -> Source:
        """Return these images followed by others, numbered in the same place by the same classes."""
        labels, numbers = [self.labels, other.labels], [self._numbers(), other._numbers()]
        return Source(np.concatenate(labels), self.classes, self.images, np.concatenate(numbers))

    def with_classes(self, classes: list[str], where: str) -> Source:
        """Return the same images numbered by other classes, matched by name; a class without images here is logged."""
        if self.classes == classes:
            return self
        check_look_alike([*self.classes, *classes], f"the training set with {where}")
        if unknown := sorted(set(self.classes) - set(classes)):
            near = next(((one, two) for one in unknown for two in classes if one.casefold() == two.casefold()), None)
            hint = "" if near is None else f" ({' and '.join(map(printable, near))} differ in capitals)"
            raise InputError(
                f"{where} has classes that the training set lacks, {list_some(unknown)}{hint}; remove them, or add "
                "them there."
            )
        if missing := sorted(set(classes) - set(self.classes)):
            warn_once(f"{where} has no images of {list_some(missing)}, which the training set has.")
        places = np.array([classes.index(name) for name in self.classes], dtype=np.int64)
        labels = places[self.labels] if not self.multi_label else np.zeros((len(self), len(classes)), np.uint8)
        if self.multi_label:
            labels[:, places] = self.labels
        return replace(self, labels=labels, classes=classes)

    def fingerprint(self, times: bool = True) -> str:
        """Return a SHA-256 (hexadecimal) that changes with the images, their order, labels or classes.

        Nothing is decoded: arrays count by their values, files by their names, sizes and, if asked for, modification
        times; without these a copy of the files is the same.
        """
        chosen = b"" if self.numbers is None else self.numbers.astype(np.int64).tobytes()
        labels = self.labels.astype(np.int64).tobytes()
        groups = [] if self.groups is None else [self.groups]
        return hash_parts([self.images.fingerprint(times), json.dumps(self.classes), labels, chosen, *groups])

    def _numbers(self) -> np.ndarray:
        return np.arange(len(self.labels)) if self.numbers is None else self.numbers

    def number(self, index: int) -> int:
        """Return the number that the i-th image has where the images are."""
        return int(index if self.numbers is None else self.numbers[index])


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
    """Return up to eight evenly spread indices below ``count``, the first and last included, to sample a dataset.

    Example:
        >>> spread_indices(15)
        [0, 2, 4, 6, 8, 10, 12, 14]
    """
    return sorted({round(place) for place in np.linspace(0, count - 1, 8)})


def stamp(file: str, times: bool) -> str:
    """Return a file's size and, if asked for, its modification time; nothing if it is missing; reading reports that."""
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
        """Return the hash of the pixels."""
        return hash_parts([self.pixels])


def decode(
    source: Source,
    index: int,
    size: tuple[int, int] | None,
    channels: int,
    interpolation: str = "bicubic",
    window: Sequence[float] | None = None,
) -> np.ndarray:
    """Return one image as uint8 (H, W, C): converted to C channels and brought to the input size.

    Channels and window are those of :func:`image_pixels`, size and interpolation those of :func:`to_size`; without a
    size the image is taken as it is. Pillow's warnings are left to the calling process.

    Example:
        >>> source = Source(np.zeros(1, np.int64), ["a"], ArrayImages(np.zeros((1, 8, 6), np.uint8), "image"))
        >>> decode(source, 0, None, 3).shape
        (8, 6, 3)
    """
    try:
        pixels = image_pixels(source.read(index), channels, window, partial(source.name, index), size)
        return pixels if size is None else to_size(pixels, size, interpolation)
    except Exception as error:  # damaged content makes Pillow and its codecs raise anything
        raise InputError(f"image {source.name(index)} cannot be read: {explain_error(error)}.") from error
