"""Class folders in tar files, read in place."""

from __future__ import annotations

import io
import posixpath
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mixmo.data.decoding import MAX_BYTES, SIGNATURE, explain_error, starts_like_image
from mixmo.data.sources import Source, hash_parts, log_progress, stamps
from mixmo.data.trees import Entry, Kind, assign_labels, has_image_suffix, is_hidden, strip_top
from mixmo.errors import InputError
from mixmo.names import printable

MAX_TOTAL = 2**34
"""Bytes in a split's compressed tar files, whose images are kept in memory."""

MAX_HEADER = 2**20
"""Bytes of a long name or of extended attributes."""

HEADERS = {
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
}  # fmt: skip

_READING = threading.Lock()


class Member(NamedTuple):
    """An image in a tar file.

    Attributes:
        archive: The tar file's number.
        number: Its place among the members.
        offset: Where its content starts; -1 in a compressed tar, which cannot be read at random.
        size: Bytes of its content.
        path: Its name in the tar.
    """

    archive: int
    number: int
    offset: int
    size: int
    path: str


class TarImages:
    """Images in tar files; those of compressed ones are kept in memory, from the first that is read.

    Args:
        archives: The tar files.
        members: The images in them.
    """

    def __init__(self, archives: Sequence[str], members: Sequence[Member]) -> None:
        self.archives, self.members = archives, members
        self._contents: dict[tuple[int, int], bytes] | InputError = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_contents": {}}

    def read(self, index: int) -> bytes:
        """Return the content of an image's file.

        Raises:
            InputError: if the archive is damaged, or changed since it was listed.
        """
        member = self.members[index]
        if member.offset < 0:
            return self._compressed()[member.archive, member.number]
        with open(self.archives[member.archive], "rb") as file:
            file.seek(member.offset)
            return file.read(member.size)

    def name(self, index: int) -> str:
        """Return an image's path in its archive."""
        member = self.members[index]
        return f"{self.archives[member.archive]}/{member.path}"

    def fingerprint(self, times: bool) -> str:
        """Return the hash of the archives' names, sizes and, if asked for, modification times, and of the members'."""
        return hash_parts([*stamps(self.archives, times), *(f"{member.path} {member.size}" for member in self.members)])

    def _compressed(self) -> dict[tuple[int, int], bytes]:
        """Return the contents of compressed archives; they are read once, even if that fails."""
        with _READING:
            if not self._contents:
                try:
                    self._contents = self._read_compressed()
                except InputError as error:
                    self._contents = error
        if isinstance(self._contents, InputError):
            raise self._contents
        return self._contents

    def _read_compressed(self) -> dict[tuple[int, int], bytes]:
        wanted = {(member.archive, member.number): member for member in self.members if member.offset < 0}
        contents = {}
        for archive in sorted({archive for archive, _ in wanted}):
            with open_tar(self.archives[archive]) as tar:
                missing = {number for which, number in wanted if which == archive}
                for number, found in enumerate(tar):
                    if number not in missing:
                        continue
                    member = wanted[archive, number]
                    if (found.name, found.size) == (member.path, member.size):
                        contents[archive, number] = read_member(tar, found, member.size)
                        missing.remove(number)
                if missing:
                    raise tarfile.ReadError("it changed since it was listed")
        return contents


def open_archives(archives: Sequence[Path], split: str) -> Source:
    """Return the images of a split's tar files; their names are read, not their contents.

    Args:
        archives: The tar files, whose class folders belong together.
        split: What a top folder in them may be called, as the archive itself may.

    Raises:
        MissingError: if there are no images.
        InputError: if a tar file is damaged, a class has no images, or it is too large.
    """
    members: list[Member] = []
    entries: list[Entry] = []
    for number, archive in enumerate(archives):
        found = _list_members(archive, number, members)
        entries += strip_top(found, {split, archive.name.partition(".")[0]})
    where = str(archives[0]) if len(archives) == 1 else f"{archives[0].parent}/{split}-*.tar"
    images, labels, classes = assign_labels(entries, printable(where))
    chosen = [members[entry.place] for entry in images]
    return Source(labels, classes, TarImages([str(archive) for archive in archives], chosen))


def _list_members(archive: Path, number: int, members: list[Member]) -> list[Entry]:
    """Return the entries of a tar file; append its members to ``members``, where the entries' places point."""
    entries: dict[tuple[str, ...], Entry] = {}
    total = sum(member.size for member in members if member.offset < 0)
    with open_tar(str(archive)) as tar:
        plain = isinstance(tar.fileobj, io.BufferedReader)  # a decompressor otherwise
        for place, found in enumerate(log_progress(tar, str(archive))):
            total += 0 if plain else found.size
            if total > MAX_TOTAL:
                raise InputError(
                    f"{printable(str(archive))} brings compressed tar files to more than {MAX_TOTAL >> 30} GiB of "
                    "content, which would be kept in memory; unpack it into folders, or pack it uncompressed."
                )
            # Only a name: "..", "." and a leading "/" lead nowhere.
            parts = tuple(part for part in posixpath.normpath("/" + found.name).split("/") if part)
            if not parts or any(is_hidden(part) for part in parts) or (found.isdir() and len(parts) > 2):
                continue
            kind = _kind(tar, found)
            if kind == "image" and found.size > MAX_BYTES:
                raise InputError(
                    f"{printable(f'{archive}/{found.name}')} has {found.size / 2**20:.0f} MiB, more than the "
                    f"{MAX_BYTES >> 20} MiB that an image may have; unpack the tar file into folders without it."
                )
            entries[parts] = Entry(parts, kind, len(members))  # of two of one name the later one counts, as unpacked
            members.append(Member(number, place, found.offset_data if plain else -1, found.size, found.name))
        while tar.fileobj and not plain and tar.fileobj.read(MAX_HEADER):  # a decompressor checks its sums at the end
            pass
    return list(entries.values())


def _kind(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Kind:
    if member.isdir():
        return "folder"
    if not member.isreg() or member.issparse():
        return "other"
    if has_image_suffix(member.name) or starts_like_image(read_member(tar, member, SIGNATURE)):
        return "image"
    return "other"


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, size: int) -> bytes:
    """Return the first bytes of a member's content."""
    file = tar.extractfile(member)
    return b"" if file is None else file.read(size)


class _Checked(tarfile.TarInfo):
    """A header that is not there, damaged or very long is an error; Python takes the first two for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Checked:
        try:
            found = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):  # the end
                raise
            raise tarfile.ReadError(f"{error}, truncated or damaged") from error
        if found.type in HEADERS and found.size > MAX_HEADER:
            raise tarfile.ReadError(f"it has a header of {found.size} bytes")
        return found


@contextmanager
def open_tar(archive: str, mode: Literal["r", "r:"] = "r") -> Iterator[tarfile.TarFile]:
    """Open a tar file; raise ``InputError`` for anything that is wrong with it."""
    try:
        with tarfile.open(archive, mode, tarinfo=_Checked) as tar:
            yield tar
    except InputError:
        raise
    except Exception as error:  # each decompressor has errors of its own
        text = explain_error(error).replace("file could not be opened successfully", "it is damaged, or no tar file")
        raise InputError(f"{printable(archive)} cannot be read as a tar file: {text}.") from error
