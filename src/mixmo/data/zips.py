"""Class folders in a zip file, read in place."""

from __future__ import annotations

import functools
import os
import posixpath
import stat
import threading
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixmo.data.decoding import MAX_BYTES, SIGNATURE, explain_error, starts_like_image, too_long
from mixmo.data.sources import Source, hash_parts, log_progress, stamp
from mixmo.data.trees import Entry, assign_labels, has_image_suffix, is_hidden, strip_top
from mixmo.errors import InputError
from mixmo.names import printable

SUFFIX = ".zip"
_OPENING = threading.Lock()


@dataclass(frozen=True)
class ZipImages:
    """Images in a zip file.

    Args:
        archive: The zip file.
        names: Their names in it.
        sizes: Bytes of their content.
    """

    archive: str
    names: Sequence[str]
    sizes: Sequence[int]

    def read(self, index: int) -> bytes:
        """Return the content of an image's file.

        Raises:
            InputError: if it is larger than ``MAX_BYTES``.
        """
        if self.sizes[index] > MAX_BYTES:
            raise too_long(self.sizes[index])
        with _get_archive(self.archive).open(self.names[index]) as file:
            return file.read(MAX_BYTES + 1)

    def name(self, index: int) -> str:
        """Return an image's path in the archive."""
        return f"{self.archive}/{self.names[index]}"

    def fingerprint(self, times: bool) -> str:
        """Return the hash of the archive's name, size and, if asked for, modification time, and of its members'."""
        parts = [os.path.basename(self.archive), stamp(self.archive, times)]
        return hash_parts(parts + [f"{name} {size}" for name, size in zip(self.names, self.sizes, strict=True)])


def zip_entries(archive: Path) -> tuple[list[Entry], ZipImages]:
    """Return what a zip file holds, without hidden names and a common top folder, and all of it as images.

    Args:
        archive: The file.

    Raises:
        InputError: if it is damaged, encrypted, or no zip file.
    """
    entries, names, sizes = dict[tuple[str, ...], Entry](), list[str](), list[int]()
    opened = _get_archive(str(archive))
    for member in log_progress(opened.infolist(), str(archive)):
        # Only a name: "..", "." and a leading "/" lead nowhere.
        parts = tuple(part for part in posixpath.normpath("/" + member.filename).split("/") if part)
        if not parts or any(is_hidden(part) for part in parts):
            continue
        if member.flag_bits & 1:
            raise InputError(f"{printable(str(archive))} is encrypted ({printable(member.filename)}); unpack it first.")
        kind = "folder" if member.is_dir() else "image" if _is_image(opened, member) else "other"
        entries[parts] = Entry(parts, kind, len(names))  # type: ignore[arg-type]
        names.append(member.filename)
        sizes.append(member.file_size)
    tops = {parts[0] for parts in entries}
    return strip_top(list(entries.values()), tops), ZipImages(str(archive), names, sizes)


def open_entries(entries: Sequence[Entry], images: ZipImages, where: str) -> Source:
    """Return the images of class folders in a zip file.

    Args:
        entries: What the split holds: class folders with images.
        images: All that the file holds; the entries' places are in it.
        where: What the split is called, for errors.
    """
    found, labels, classes = assign_labels(entries, printable(where))
    names, sizes = ([of[entry.place] for entry in found] for of in (images.names, images.sizes))
    return Source(labels, classes, ZipImages(images.archive, names, sizes))  # type: ignore[arg-type]


def _is_image(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):  # a link or a device
        return False
    if has_image_suffix(member.filename):
        return True
    try:
        with archive.open(member) as file:
            return starts_like_image(file.read(SIGNATURE))
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError):  # damaged, or packed otherwise
        return False


def _get_archive(archive: str) -> zipfile.ZipFile:
    """Return an open zip file, one for each process: others must not share its place in the file."""
    with _OPENING:
        try:
            return _open(archive, os.getpid(), os.stat(archive).st_mtime_ns)
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise InputError(f"{printable(archive)} cannot be read as a zip file: {explain_error(error)}.") from error


@functools.lru_cache(maxsize=4)
def _open(archive: str, process: int, changed: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)
