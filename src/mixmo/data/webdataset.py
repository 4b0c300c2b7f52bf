"""Tar shards of the webdataset library: files with one name and several endings are one labelled image.

The headers are read once, in sequence, and where each image lies is kept; then images are read at random, so that the
order is a function of (seed, epoch) alone, on any number of ranks and workers, and a run resumes at any batch.
"""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mixmo.cache import cache_folder, keep_tensors, read_tensors
from mixmo.data.archives import open_tar, read_member
from mixmo.data.decoding import MAX_BYTES, explain_error
from mixmo.data.shards import ShardedImages, build_source, missing_shards, number_labels, report_problems
from mixmo.data.sources import Source, hash_parts, log_progress, logger, stamp, stamps
from mixmo.data.trees import SUFFIXES
from mixmo.errors import InputError
from mixmo.files import check_regular

LABEL, DESCRIPTION = "cls", "json"
"""Endings of the files that hold a label: alone, or as ``label`` of a JSON object."""

LONGEST_LABEL = 2**20
NAMES = ("classes.txt", "classnames.txt")
"""Files next to the shards that hold the class names, a line each."""


class WebImages(ShardedImages):
    """Images in tar shards.

    Args:
        files: The shards.
        starts: (S + 1,) the number of each shard's first image, and of all images.
        offsets: (N,) where their content starts in the shard.
        sizes: (N,) bytes of their content.
    """

    def __init__(self, files: Sequence[str], starts: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> None:
        super().__init__(starts)
        self.files, self.offsets, self.sizes = files, offsets, sizes

    def read(self, index: int) -> bytes:
        """Return the content of an image's file."""
        shard, _ = self.place(index)
        with open(self.files[shard], "rb") as file:
            file.seek(self.offsets[index])
            return file.read(self.sizes[index])

    def name(self, index: int) -> str:
        """Return an image's path in its shard, which its header there has, or its number where it is damaged."""
        shard, place = self.place(index)
        try:
            with open(self.files[shard], "rb") as file:
                file.seek(int(self.offsets[index]) - tarfile.BLOCKSIZE)
                header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
            return f"{self.files[shard]}/{header.name}"
        except (OSError, tarfile.HeaderError):
            return f"{self.files[shard]} image {place}"

    def fingerprint(self, times: bool) -> str:
        """Return the hash of the shards' names, sizes, modification times if asked for, and where images lie."""
        return hash_parts([*stamps(self.files, times), self.offsets, self.sizes])


def open_webdataset(folder: Path, files: Sequence[str], on_error: str) -> Source:
    """Return the images of a split's tar shards.

    Args:
        folder: The dataset's folder, where class names may lie.
        files: The shards' paths below it.
        on_error: ``raise``, or ``skip`` shards that are missing, and what is damaged in the others.

    Raises:
        MissingError: if there are no images.
        InputError: if shards are compressed, or missing or damaged and ``on_error`` is ``raise``.
    """
    if packed := [file for file in files if not file.endswith(".tar")]:
        raise InputError(
            f"shard {folder / packed[0]} is compressed, so that its images cannot be read one by one; decompress it, "
            "which takes little more room, as images are compressed themselves."
        )
    paths = [str(folder / file) for file in sorted(files)]
    listings = list(_list_shards(paths))
    problems = [f"shard {name} is missing" for name in missing_shards(files)]
    report_problems([*problems, *(text for each in listings for text in each.problems)], str(folder), on_error)
    labels, classes, starts = number_labels(
        [each.labels for each in listings], _read_class_names(folder), str(folder), on_error
    )
    offsets, sizes = (np.concatenate(each) for each in zip(*(each[1:3] for each in listings), strict=True))
    return build_source(WebImages(paths, starts, offsets, sizes), labels, classes, str(folder))


def _read_class_names(folder: Path) -> list[str] | None:
    for name in NAMES:
        try:
            check_regular(folder / name)
            return (folder / name).read_text("utf-8").splitlines()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, InputError) as error:
            raise InputError(f"{folder / name} cannot be read: {explain_error(error)}.") from error
    return None


class Listing(NamedTuple):
    """What one shard holds.

    Attributes:
        labels: (n,) class names, or class numbers as text.
        offsets: (n,) where each image's content starts.
        sizes: (n,) bytes of it.
        problems: What is wrong with the shard or its records, a sentence without its end each.
    """

    labels: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    problems: list[str]


def _list_shards(files: Sequence[str]) -> Iterator[Listing]:
    """Yield what each shard holds; what was found before is kept in the user's cache, as listing takes a while."""
    cache = cache_folder("shards")
    for number, file in enumerate(files):
        kept = cache / f"{hash_parts(['1', os.path.abspath(file), stamp(file, times=True)])}.safetensors"
        if (found := read_tensors(kept)) is not None:
            tensors, note = found
            codes, offsets, sizes = (tensors[key].numpy() for key in ("labels", "offsets", "sizes"))
            yield Listing(np.array(note["labels"], dtype=str)[codes], offsets, sizes, note["problems"])
            continue
        if number % 100 == 0:
            logger.info("listing %d of %d shards", number + 1, len(files))
        listing = _list_records(file)
        texts, codes = np.unique(listing.labels, return_inverse=True)
        columns = {"labels": codes, "offsets": listing.offsets, "sizes": listing.sizes}
        note = {"labels": texts.tolist(), "problems": listing.problems}
        keep_tensors(kept, {key: torch.from_numpy(column) for key, column in columns.items()}, note)
        yield listing


class _Record(NamedTuple):
    label: str
    offset: int
    size: int


def _list_records(file: str) -> Listing:
    records: list[_Record] = []
    problems: list[str] = []
    try:
        with open_tar(file, "r:") as tar:
            for key, members in groupby(_iterate_files(tar), lambda member: _split_name(member.name)[0]):
                found = _record(tar, {_split_name(member.name)[1]: member for member in members})
                if isinstance(found, str):
                    problems.append(f"{file}/{key} {found}")
                else:
                    records.append(found)
    except InputError as error:
        problems.append(str(error).rstrip("."))
    labels, offsets, sizes = zip(*records, strict=True) if records else ((), (), ())
    return Listing(
        np.array(labels, dtype=str), np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64), problems
    )


def _iterate_files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in log_progress(iter(tar.next, None), str(tar.name)):
        tar.members.clear()  # type: ignore[attr-defined]  # every header, which Python keeps; typeshed leaves it out
        if member.isreg() and not posixpath.basename(member.name).startswith("."):
            yield member


def _split_name(name: str) -> tuple[str, str]:
    """Return the name that the files of a record share, and an ending: what follows the first dot of the last part.

    Example:
        >>> _split_name("train/n01.5/000.seg.png")
        ('train/n01.5/000', 'seg.png')
    """
    folder, slash, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def _record(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo]) -> _Record | str:
    """Return where a record's image lies and its label, or what is wrong with it."""
    image = next((members[ending] for ending in members if f".{ending}" in SUFFIXES), None)
    if image is None:
        return "has no image"
    if image.size > MAX_BYTES:
        return f"has an image of {image.size >> 20} MiB, more than {MAX_BYTES >> 20}"
    source = members.get(LABEL) or members.get(DESCRIPTION)
    if source is None:
        return f"has no label: no .{LABEL} file and no .{DESCRIPTION} file"
    content = read_member(tar, source, LONGEST_LABEL)
    try:
        text = content.decode().strip() if LABEL in members else json.loads(content)["label"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "has a label that cannot be read"
    if not isinstance(text, str | int) or isinstance(text, bool) or not str(text):
        return "has no label"
    return _Record(str(text), image.offset_data, image.size)
