"""Class folders: which class an image is of, and how its file is read."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mixmo.data.decoding import SIGNATURE, explain_error, starts_like_image
from mixmo.data.levels import check_length
from mixmo.data.messages import log_progress, warn_once
from mixmo.data.sources import Source, hash_parts, stamp
from mixmo.data.special_formats import SUFFIXES as SPECIAL
from mixmo.errors import InputError, MissingError
from mixmo.escaping import printable
from mixmo.files import check_regular

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
    *SPECIAL,
)  # fmt: skip
"""File extensions of images; the content decides for others."""

Kind = Literal["image", "folder", "other"]


@dataclass(frozen=True)
class FileImages:
    """Images that are files below a folder, which messages call by its title, or else by its path."""

    root: str
    paths: Sequence[str]
    title: str = ""

    def read(self, index: int) -> bytes:
        """Return the content of a file."""
        return read_file(os.path.join(self.root, self.paths[index]))

    def name(self, index: int) -> str:
        """Return a file's path."""
        return os.path.join(self.title or self.root, self.paths[index])

    def fingerprint(self, times: bool) -> str:
        """Return the hash of the files' paths below the folder, their sizes and, if asked for, modification times."""
        return hash_parts(part for path in self.paths for part in (path, stamp(os.path.join(self.root, path), times)))


def read_file(path: str) -> bytes:
    """Return the content of an image's file; refuse one that is too long, or not a regular file."""
    check_regular(path)
    with open(path, "rb") as file:
        check_length(os.fstat(file.fileno()).st_size)
        return file.read()


class Entry(NamedTuple):
    """An entry below a folder of class folders: its path there in parts, and below the dataset's folder."""

    parts: tuple[str, ...]
    kind: Kind
    path: str


def open_class_folders(root: Path, title: str, parts: Sequence[str] = (), tops: Collection[str] = ()) -> Source:
    """Return the images of a folder of class folders, each of the class that its path begins with.

    Args:
        root: The folder.
        title: Its name in messages.
        parts: Folders in it whose class folders are merged; if empty, the folder itself.
        tops: Names, besides the folder's own, of a single top folder that holds all class folders.
    """
    where = printable(os.path.join(title, parts[0]) if len(parts) == 1 else title)
    entries: list[Entry] = []
    for part in parts or ("",):
        folder = root / part
        found = log_progress(walk(str(folder)), where)
        below = [Entry(tuple(path.split(os.sep)), kind, os.path.join(part, path)) for path, kind in found]
        entries += _strip_top(below, {folder.name, *tops})
    images, labels, classes = _assign_labels(entries, where)
    return Source(labels, classes, FileImages(str(root), [entry.path for entry in images], title))


def _strip_top(entries: Sequence[Entry], names: Collection[str]) -> list[Entry]:
    """Return the entries without a single top folder of one of these names."""
    tops = {entry.parts[0] for entry in entries}
    deep = all(len(entry.parts) > 2 for entry in entries if entry.kind == "image")  # the top is not a class
    if len(tops) != 1 or not tops <= set(names) or not deep:
        return list(entries)
    return [entry._replace(parts=entry.parts[1:]) for entry in entries if len(entry.parts) > 1]


def _assign_labels(entries: Sequence[Entry], where: str) -> tuple[list[Entry], np.ndarray, list[str]]:
    """Return the images in the order of their paths, their class numbers (N,) and the class names."""
    images = sorted(entry for entry in entries if entry.kind == "image" and len(entry.parts) > 1)
    if not images:
        raise MissingError(f"{where} holds no images; it needs one folder for each class, with images in it.")
    filled = sorted({entry.parts[0] for entry in images})
    folders = {entry.parts[0] for entry in entries if entry.kind == "folder" or len(entry.parts) > 1}
    if empty := sorted(folders.difference(filled)):
        raise InputError(
            f"{where}/{printable(empty[0])} has no images; remove the folder of this class, or put images in it."
        )
    if left_out := sorted(
        "/".join(entry.parts)
        for entry in entries
        if entry.kind == "other" or (entry.kind == "image" and len(entry.parts) == 1)
    ):
        shown = ", ".join(left_out[:3]) + (", …" if len(left_out) > 3 else "")
        warn_once(f"{where}: left out {len(left_out)} that are not images, or not in a class folder: {shown}")
    numbers = {name: number for number, name in enumerate(filled)}
    return images, np.array([numbers[entry.parts[0]] for entry in images], dtype=np.int64), filled


def walk(root: str) -> Iterator[tuple[str, Kind]]:
    """Yield the entries below a folder, except hidden ones; links are followed unless they lead to a folder above."""
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        below, above = waiting.pop()
        here = os.path.join(root, below)
        try:
            status = os.stat(here)
            found = list(os.scandir(here))
        except OSError as error:
            raise InputError(f"folder {printable(here)} cannot be listed: {explain_error(error)}.") from error
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            yield below, "other"
            continue
        if below:
            yield below, "folder"
        for entry in found:
            if is_hidden(entry.name):
                continue
            path = os.path.join(below, entry.name)
            if (kind := _kind(entry)) == "folder":
                waiting.append((path, above | {identity}))
            else:
                yield path, kind


def is_hidden(name: str) -> bool:
    """Return whether a name is neither a class nor an image: ``.ipynb_checkpoints``, ``._cat.png``, ``__MACOSX``.

    Example:
        >>> is_hidden(".ipynb_checkpoints"), is_hidden("__MACOSX"), is_hidden("_cat")
        (True, True, False)
    """
    return name.startswith((".", "__"))


def _kind(entry: os.DirEntry[str]) -> Kind:
    """Return an entry's kind; files with other extensions are opened, pipes and devices never."""
    try:
        if entry.is_dir():
            return "folder"
        if not entry.is_file():
            return "other"
        if entry.name.lower().endswith(SUFFIXES):
            return "image"
        with open(entry.path, "rb") as file:
            return "image" if starts_like_image(file.read(SIGNATURE)) else "other"
    except OSError:  # a link to itself, or no permission to read
        return "other"
