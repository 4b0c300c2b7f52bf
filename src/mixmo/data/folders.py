"""Class folders on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixmo.data.decoding import MAX_BYTES, SIGNATURE, explain_error, starts_like_image, too_long
from mixmo.data.sources import Source, hash_parts, log_progress, stamp
from mixmo.data.trees import Entry, Kind, assign_labels, has_image_suffix, is_hidden, strip_top
from mixmo.errors import InputError
from mixmo.files import check_regular
from mixmo.names import printable


@dataclass(frozen=True)
class FileImages:
    """Images that are files.

    Args:
        root: The folder they are in.
        paths: Their paths below it.
    """

    root: str
    paths: Sequence[str]

    def read(self, index: int) -> bytes:
        """Return the content of a file.

        Raises:
            InputError: if it is larger than ``MAX_BYTES``, or no regular file.
        """
        check_regular(self.name(index))
        with open(self.name(index), "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise too_long(size)
            return file.read()

    def name(self, index: int) -> str:
        """Return a file's path."""
        return os.path.join(self.root, self.paths[index])

    def fingerprint(self, times: bool) -> str:
        """Return the hash of the files' paths below the folder, their sizes and, if asked for, modification times."""
        return hash_parts(part for i, path in enumerate(self.paths) for part in (path, stamp(self.name(i), times)))


def open_class_folders(folder: Path) -> Source:
    """Return the images of a folder of class folders.

    Args:
        folder: The split's folder.

    Raises:
        MissingError: if there are no images.
        InputError: if a class has none, or a folder cannot be listed.
    """
    paths: list[str] = []
    entries = []
    for path, kind in log_progress(walk(str(folder)), str(folder)):
        entries.append(Entry(tuple(path.split(os.sep)), kind, len(paths)))
        paths.append(path)
    images, labels, classes = assign_labels(strip_top(entries, {folder.name}), printable(str(folder)))
    return Source(labels, classes, FileImages(str(folder), [paths[entry.place] for entry in images]))


def walk(root: str) -> Iterator[tuple[str, Kind]]:
    """Yield what is below a folder, hidden names left out; links are followed unless they lead to a folder above."""
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


def _kind(entry: os.DirEntry[str]) -> Kind:
    """Return what an entry is; pipes and devices are never opened, and odd endings are looked into."""
    try:
        if entry.is_dir():
            return "folder"
        if not entry.is_file():
            return "other"
        if has_image_suffix(entry.name):
            return "image"
        with open(entry.path, "rb") as file:
            return "image" if starts_like_image(file.read(SIGNATURE)) else "other"
    except OSError:  # a link to itself, or no right to read
        return "other"
