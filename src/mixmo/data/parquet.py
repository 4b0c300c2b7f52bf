"""Parquet shards, as the Hugging Face Hub keeps datasets: a column of encoded images, and one of labels.

Footers and labels are read at once, images in row groups when they are needed, from a disk or through fsspec from
elsewhere, so that nothing is downloaded or converted before training.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mixmo.data.shards import ShardedImages, build_source, missing_shards, number_labels, report_problems
from mixmo.data.sources import Source, hash_parts, warn_once
from mixmo.errors import InputError, MissingError, reason
from mixmo.names import printable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from fsspec import AbstractFileSystem

ENDING = ".parquet"
LOCAL = ("file", "local", "memory")
"""Protocols of fsspec that ask no network."""

KEPT = 48
"""Row groups kept by each process that reads: about three windows of 16."""

IMAGES = ("image", "img", "jpg", "png", "webp")
LABELS = ("label", "labels", "fine_label", "class", "target", "cls")
"""Names of columns, where the file does not tell what they are."""


class Columns(NamedTuple):
    """What a file's columns are.

    Attributes:
        image: The column of images: bytes, or a struct that holds ``bytes``.
        label: The column of class numbers or names.
        classes: The class names in the order of their numbers, where the file tells.
    """

    image: str
    label: str
    classes: list[str] | None


class ParquetImages(ShardedImages):
    """Images in Parquet files; a shard is a row group.

    Args:
        files: Paths of the files.
        system: Where they are.
        groups: Each row group's file, and its number there.
        starts: (S + 1,) the number of each row group's first image, and of all images.
        column: The column of images.
    """

    def __init__(
        self,
        files: Sequence[str],
        system: AbstractFileSystem,
        groups: Sequence[tuple[int, int]],
        starts: np.ndarray,
        column: str,
    ) -> None:
        super().__init__(starts)
        self.files, self.system, self.groups, self.column = files, system, groups, column
        self._forget()

    def _forget(self) -> None:
        self._kept: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._reading, self._process = threading.Lock(), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_kept", "_reading", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._forget()

    def read(self, index: int) -> bytes:
        """Return the content of an image.

        Raises:
            InputError: if the row holds none.
        """
        group, row = self.place(index)
        found = self._group(group)[row].as_py()
        content = found.get("bytes") if isinstance(found, dict) else found
        if not isinstance(content, bytes):
            raise InputError("its row holds no bytes of an image.")
        return content

    def _group(self, group: int) -> pa.ChunkedArray:
        if self._process != os.getpid():  # a forked worker: connections and locks are the other process's
            self.system = type(self.system)(*self.system.storage_args, **self.system.storage_options)
            self._forget()
        with self._reading:
            if group not in self._kept:
                file, number = self.groups[group]
                with self.system.open(self.files[file], "rb") as content:
                    table = _open_file(content).read_row_group(number, columns=[self.column])
                self._kept[group] = table.column(self.column)
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(group)
            return self._kept[group]

    def name(self, index: int) -> str:
        """Return the file, and the image's number in its row group."""
        group, row = self.place(index)
        file, number = self.groups[group]
        return f"{self.files[file]} row group {number} row {row}"

    def fingerprint(self, times: bool) -> str:
        """Return the hash of the files' names, sizes and, if asked for, modification times, and of row groups."""
        parts = []
        for file in self.files:
            about = self.system.info(file)
            parts.append(f"{file.rpartition('/')[2]} {about.get('size')} {about.get('mtime') if times else ''}")
        return hash_parts([*parts, self.starts])


def is_local(path: str) -> bool:
    """Return whether a path is one on this machine; of fsspec's protocols these are known, and no chain of them.

    Example:
        >>> is_local("data/train"), is_local("file:///data"), is_local("http://host/x"), is_local("http::host/x")
        (True, True, False, False)
    """
    protocol, separator, _ = path.partition("://")
    return "::" not in path and not path.startswith("data:") and (not separator or protocol in LOCAL)


def parquet_files(path: str, download: bool, option: str) -> tuple[AbstractFileSystem, str, list[str]]:
    """Return where Parquet files are, the folder there, and their paths below it.

    Args:
        path: A folder or a file on a disk, or as fsspec writes it: ``hf://datasets/OWNER/NAME``, ``s3://…``.
        download: Whether the network may be asked.
        option: What allows that in the command at hand, for errors.

    Raises:
        InputError: if pyarrow is not installed, or the network would be asked without permission.
        MissingError: if there are none.
    """
    try:
        import_module("pyarrow.parquet")  # here, so that no file is blamed for the lack of it
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise InputError("Parquet files need pyarrow; `pip install 'mixmo[parquet]'` installs it.") from error
    if not is_local(path) and not download:
        raise InputError(f"{printable(path)} is elsewhere; allow the network to be asked with {option}.")
    try:
        system, root = url_to_fs(path)
        found = system.find(root, detail=True)
        files = sorted(file for file, about in found.items() if file.endswith(ENDING) and _is_file(file, about))
    except Exception as error:  # file systems raise many kinds of errors
        raise MissingError(f"{printable(path)} cannot be listed: {reason(error)}.") from error
    if not files:
        raise MissingError(f"there are no {ENDING} files in {printable(path)}.")
    folder = root.rpartition("/")[0] if files == [root] else root.rstrip("/")
    return system, folder, [file.removeprefix(f"{folder}/") for file in files]


def _is_file(file: str, about: Mapping[str, Any]) -> bool:
    """Return whether something is a file, or a link to one, as the Hub's cache has them, and no pipe."""
    return about.get("type") == "file" or os.path.isfile(file)


def open_parquet(system: AbstractFileSystem, folder: str, files: Sequence[str], on_error: str) -> Source:
    """Return the images of a split's Parquet files.

    Args:
        system: Where they are.
        folder: The dataset's folder.
        files: Their paths below it.
        on_error: ``raise``, or ``skip`` files that are missing or damaged.

    Raises:
        MissingError: if there are no images.
        InputError: if files are missing or damaged and ``on_error`` is ``raise``, or hold no images or no labels.
    """
    columns: Columns | None = None
    labels, groups, paths = list[np.ndarray](), list[tuple[int, int]](), list[str]()
    problems = [f"file {name} is missing" for name in missing_shards(files)]
    for file in sorted(files):
        try:
            own, found = _read_labels(system, f"{folder}/{file}")
            columns = columns or own
            if own[:2] != columns[:2]:
                raise InputError(
                    f"its columns are {own.image} and {own.label}, not {columns.image} and {columns.label}"
                )
        except _ColumnsError:
            raise
        except Exception as error:  # pyarrow may raise anything for damaged bytes
            problems.append(f"file {file} cannot be read: {reason(error)}")
            continue
        groups += [(len(paths), number) for number in range(len(found))]
        labels += found
        paths.append(f"{folder}/{file}")
    report_problems(problems, folder, on_error)
    if columns is None:
        raise MissingError(f"{printable(folder)} has no Parquet file that can be read.")
    numbers, classes, starts = number_labels(labels, columns.classes, folder, on_error)
    return build_source(ParquetImages(paths, system, groups, starts, columns.image), numbers, classes, folder)


class _ColumnsError(InputError):
    """A file without images or labels, which no other file mends."""


def _read_labels(system: AbstractFileSystem, file: str) -> tuple[Columns, list[np.ndarray]]:
    """Return a file's columns, and the labels of each row group."""
    with system.open(file, "rb") as content:
        opened = _open_file(content)
        columns = _columns(opened.schema_arrow, file)
        values = opened.read(columns=[columns.label]).column(columns.label).to_pylist()
        sizes = [opened.metadata.row_group(number).num_rows for number in range(opened.metadata.num_row_groups)]
    if not all(isinstance(value, str | int | None) for value in values):
        raise _ColumnsError(f"{printable(file)} has column {columns.label!r} of other things than numbers or names.")
    labels = np.array(["" if value is None else str(value) for value in values], dtype=str)
    return columns, np.split(labels, np.cumsum(sizes)[:-1])


def _open_file(content: IO[bytes]) -> pq.ParquetFile:
    """Open a Parquet file; its pages are checked where they have checksums, which pyarrow leaves out otherwise."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(content, page_checksum_verification=True)


def _columns(schema: pa.Schema, file: str) -> Columns:
    """Find the images and the labels: as the datasets library has noted, else by their names."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {name: each.get("_type") for name, each in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        features, kinds = {}, {}
    found = []
    for kind, usual in (("Image", IMAGES), ("ClassLabel", LABELS)):
        noted = [name for name in schema.names if kinds.get(name) == kind]
        choices = noted or [name for name in usual if name in schema.names]
        if not choices:
            raise _ColumnsError(
                f"{printable(file)} has columns {', '.join(map(printable, schema.names))}; none is noted as {kind}, or "
                f"named {' or '.join(usual)}."
            )
        if len(choices) > 1:
            warn_once(f"of the columns {', '.join(map(printable, choices))} of {printable(file)} the first is taken.")
        found.append(choices[0])
    names = (features.get(found[1]) or {}).get("names")
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return Columns(found[0], found[1], names if known else None)
