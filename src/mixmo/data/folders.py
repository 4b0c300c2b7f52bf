"""Images in class folders: finding them, their classes, and reading their files."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mixmo.data.decoding import SIGNATURE, explain_error, starts_like_image
from mixmo.data.levels import check_length
from mixmo.data.messages import list_some, log_progress, warn_once
from mixmo.data.sources import Source, hash_parts, stamp
from mixmo.data.special_formats import SUFFIXES as SPECIAL
from mixmo.errors import InputError, MissingError
from mixmo.escaping import printable
from mixmo.files import check_regular

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
    *SPECIAL,
)  # fmt: skip
"""File extensions of images; other files are recognised by their content."""

Kind = Literal["image", "folder", "other"]


@dataclass(frozen=True)
class FileImages:
    """Images that are files below a folder; messages show its title, if there is one, instead of its path."""

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
        """Return a hash of the files' relative paths, sizes and, with ``times``, modification times."""
        return hash_parts(part for path in self.paths for part in (path, stamp(os.path.join(self.root, path), times)))


def read_file(path: str) -> bytes:
    """Return the content of an image file; refuse one that is too large or not a regular file."""
    check_regular(path)
    with open(path, "rb") as file:
        check_length(os.fstat(file.fileno()).st_size)
        return file.read()


class Entry(NamedTuple):
    """An entry of a folder of class folders: the parts of its path there, and its path in the dataset's folder."""

    parts: tuple[str, ...]
    kind: Kind
    path: str


def open_class_folders(root: Path, title: str, parts: Sequence[str] = (), tops: Collection[str] = ()) -> Source:
    """Open a folder of class folders; the first part of an image's path is its class.

    Args:
        root: The folder.
        title: Its name in messages.
        parts: Subfolders whose class folders are merged; if empty, those of the folder itself.
        tops: Names (as well as the folder's) of a single top folder to skip, if it holds all class folders.
    """
    where = printable(os.path.join(title, parts[0]) if len(parts) == 1 else title)
    entries: list[Entry] = []
    for part in parts or ("",):
        folder = root / part
        listing = log_progress(walk(str(folder)), where)
        inside = [Entry(tuple(path.split(os.sep)), kind, os.path.join(part, path)) for path, kind in listing]
        entries += _strip_top(inside, {folder.name, *tops})
    images, labels, classes = _assign_labels(entries, where)
    return Source(labels, classes, FileImages(str(root), [entry.path for entry in images], title))


def _strip_top(entries: Sequence[Entry], names: Collection[str]) -> list[Entry]:
    """Remove a single top folder of one of these names from the entries' paths, unless it is a class."""
    tops = {entry.parts[0] for entry in entries}
    deep = all(len(entry.parts) > 2 for entry in entries if entry.kind == "image")
    if len(tops) != 1 or not tops <= set(names) or not deep:
        return list(entries)
    return [entry._replace(parts=entry.parts[1:]) for entry in entries if len(entry.parts) > 1]


def _assign_labels(entries: Sequence[Entry], where: str) -> tuple[list[Entry], np.ndarray, list[str]]:
    """Return the images, sorted by path, their class numbers (N,) and the class names."""
    images = sorted(entry for entry in entries if entry.kind == "image" and len(entry.parts) > 1)
    if not images:
        raise MissingError(f"{where} holds no images; it needs one folder for each class, with images in it.")
    classes = sorted({entry.parts[0] for entry in images})
    folders = {entry.parts[0] for entry in entries if entry.kind == "folder" or len(entry.parts) > 1}
    if empty := sorted(folders.difference(classes)):
        raise InputError(
            f"{where}/{printable(empty[0])} has no images; remove the folder of this class, or put images in it."
        )
    if left_out := sorted(
        "/".join(entry.parts)
        for entry in entries
        if entry.kind == "other" or (entry.kind == "image" and len(entry.parts) == 1)
    ):
        what = f"{len(left_out)} entries that are not images or not in a class folder"
        warn_once(f"{where}: left out {what}: {list_some(left_out)}")
    numbers = {name: number for number, name in enumerate(classes)}
    return images, np.array([numbers[entry.parts[0]] for entry in images], dtype=np.int64), classes


def walk(root: str) -> Iterator[tuple[str, Kind]]:
    """Yield the entries below a folder, except hidden ones; links are followed unless they lead to a parent folder."""
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        folder, parents = pending.pop()
        full = os.path.join(root, folder)
        try:
            status = os.stat(full)
            entries = list(os.scandir(full))
        except OSError as error:
            raise InputError(f"folder {printable(full)} cannot be listed: {explain_error(error)}.") from error
        identity = (status.st_dev, status.st_ino)
        if identity in parents:
            yield folder, "other"
            continue
        if folder:
            yield folder, "folder"
        for entry in entries:
            if is_hidden(entry.name):
                continue
            path = os.path.join(folder, entry.name)
            if (kind := _find_kind(entry)) == "folder":
                pending.append((path, parents | {identity}))
            else:
                yield path, kind


def is_hidden(name: str) -> bool:
    """Return whether to skip a name, such as ``.ipynb_checkpoints``, ``._cat.png`` or ``__MACOSX``.

    Example:
        >>> is_hidden(".ipynb_checkpoints"), is_hidden("__MACOSX"), is_hidden("_cat")
        (True, True, False)
    """
    return name.startswith((".", "__"))


def _find_kind(entry: os.DirEntry[str]) -> Kind:
    """Return an entry's kind; files with unknown extensions are opened, but never pipes or devices."""
    try:
        if entry.is_dir():
            return "folder"
        if not entry.is_file():
            return "other"
        if entry.name.lower().endswith(SUFFIXES):
            return "image"
        with open(entry.path, "rb") as file:
            return "image" if starts_like_image(file.read(SIGNATURE)) else "other"
    except OSError:  # a link to itself, or an unreadable file
        return "other"
