"""Classes and images from the paths in a folder or an archive."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

import numpy as np

from mixmo.data.sources import warn_once
from mixmo.errors import InputError, MissingError
from mixmo.names import printable

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
}  # fmt: skip
"""Endings of images; files with others are looked into."""


Kind = Literal["image", "folder", "other"]


class Entry(NamedTuple):
    """Something below a split.

    Attributes:
        parts: Its path below the split.
        kind: What it is; ``other`` is what is neither.
        place: Where its content is, as the maker of the entry knows it.
    """

    parts: tuple[str, ...]
    kind: Kind
    place: int = -1


def is_hidden(name: str) -> bool:
    """Return whether a name is no class and no image: ``.ipynb_checkpoints``, ``._cat.png``, ``__MACOSX``.

    Example:
        >>> is_hidden(".ipynb_checkpoints"), is_hidden("__MACOSX"), is_hidden("_cat")
        (True, True, False)
    """
    return name.startswith((".", "__"))


def has_image_suffix(name: str) -> bool:
    """Return whether a name ends like an image's.

    Example:
        >>> has_image_suffix("cat.JPEG"), has_image_suffix("cat.jfif")
        (True, False)
    """
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def strip_top(entries: Sequence[Entry], names: Collection[str]) -> list[Entry]:
    """Return the entries without a common top folder, where it is named like the split.

    Args:
        entries: The entries.
        names: Names that such a folder has.

    Example:
        >>> strip_top([Entry(("train", "cat", "a.png"), "image")], {"train"})[0].parts
        ('cat', 'a.png')
    """
    tops = {entry.parts[0] for entry in entries}
    deep = all(len(entry.parts) > 2 for entry in entries if entry.kind == "image")  # the top is no class of that name
    if len(tops) != 1 or not tops <= set(names) or not deep:
        return list(entries)
    return [entry._replace(parts=entry.parts[1:]) for entry in entries if len(entry.parts) > 1]


def assign_labels(entries: Sequence[Entry], where: str) -> tuple[list[Entry], np.ndarray, list[str]]:
    """Return the images in the order of their paths, their class numbers (N,) and the class names.

    An image's class is the first part of its path, however deep it lies below. What is left out is logged.

    Args:
        entries: What the split holds, hidden names left out.
        where: What it is called, for errors.

    Raises:
        MissingError: if there are no images.
        InputError: if a class has none.

    Example:
        >>> entries = [Entry(("dog", "b.png"), "image"), Entry(("cat", "a.png"), "image")]
        >>> images, labels, classes = assign_labels(entries, "train")
        >>> classes, labels.tolist()
        (['cat', 'dog'], [0, 1])
    """
    images = sorted(entry for entry in entries if entry.kind == "image" and len(entry.parts) > 1)
    if not images:
        raise MissingError(f"{where} holds no images; it needs one folder for each class, with images in it.")
    filled = sorted({entry.parts[0] for entry in images})
    folders = {entry.parts[0] for entry in entries if entry.kind == "folder" or len(entry.parts) > 1}
    if empty := sorted(folders.difference(filled)):
        raise InputError(
            f"{where}/{printable(empty[0])} has no images; remove the folder of this class, or put images in it."
        )
    _say_left_out(entries, where)
    numbers = {name: number for number, name in enumerate(filled)}
    return images, np.array([numbers[entry.parts[0]] for entry in images], dtype=np.int64), filled


def _say_left_out(entries: Sequence[Entry], where: str) -> None:
    left_out = sorted(
        "/".join(entry.parts)
        for entry in entries
        if entry.kind == "other" or (entry.kind == "image" and len(entry.parts) == 1)
    )
    if left_out:
        shown = ", ".join(printable(name) for name in left_out[:3]) + (", …" if len(left_out) > 3 else "")
        warn_once(f"{where}: left out {len(left_out)} that are no images, or lie in no class folder: {shown}")
