"""Local images and their splits: folders, zip and tar files, tables, shards."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mixmo.data.archives import open_archives
from mixmo.data.decoding import explain_error
from mixmo.data.folders import open_class_folders
from mixmo.data.parquet import open_parquet, parquet_files
from mixmo.data.shards import SPLITS, by_split
from mixmo.data.sources import Source
from mixmo.data.tables import open_rows, read_table
from mixmo.data.webdataset import open_webdataset
from mixmo.data.zips import SUFFIX, open_entries, zip_entries
from mixmo.errors import InputError, MissingError
from mixmo.names import printable

DOWNLOAD = "--data.download true"
"""What allows downloads in a recipe's commands; those on a run have an option of their own."""

KINDS = ("folder", "csv", "webdataset", "parquet")
TEST_FOLDERS, VALIDATION_FOLDERS = SPLITS[1:], SPLITS[2:]
TAR = r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz)"
ARCHIVE = re.compile(rf"(-.+)?{TAR}")
"""What follows a split's name in the names of its tar files."""

Parts = dict[str, Callable[[], Source]]
"""How each split is opened."""


class Reading(NamedTuple):
    """How one's own images are read.

    Attributes:
        on_error: ``raise``, or ``skip`` shards and records that are missing or damaged.
        download: Whether the network may be asked, for Parquet files that are elsewhere.
        option: What allows that in the command at hand, for errors.
    """

    on_error: str = "raise"
    download: bool = False
    option: str = DOWNLOAD


def open_local(kind: str, path: str, split: str, how: Reading) -> Source:
    """Return one split of one's own images.

    Args:
        kind: ``folder``, whose path may be a zip file, ``csv``, ``webdataset`` or ``parquet``.
        path: Where they are.
        split: ``train``, ``validation``, ``test``, or ``all`` where there are none of these.
        how: How they are read.

    Raises:
        MissingError: if it is missing or empty, or has no such split.
        InputError: if it cannot be read.
    """
    found = _find_parts(kind, path, how)
    parts = _assign_roles(found)
    if split == "all" and not parts:
        return found[""]()
    if split not in parts:
        wanted = ("train",) if split == "train" else TEST_FOLDERS if split == "test" else VALIDATION_FOLDERS
        raise MissingError(
            f"{printable(path)} has no images for {split}: nothing in it is named {' or '.join(wanted)}."
        )
    return parts[split]()


def find_local_splits(kind: str, path: str, how: Reading) -> Parts:
    """Return the splits of one's own images; nothing where there are none."""
    return _assign_roles(_find_parts(kind, path, how))


def _find_parts(kind: str, path: str, how: Reading) -> Parts:
    """Return what is there by the names of splits; under an empty name what belongs to none."""
    if kind == "parquet":
        system, folder, files = parquet_files(os.path.expanduser(path), how.download, how.option)
        return {
            split: partial(open_parquet, system, folder, own, how.on_error) for split, own in by_split(files).items()
        }
    place = Path(os.path.expanduser(path))
    if kind == "csv":
        return _open_tables(place, how)
    if kind == "folder" and place.suffix.lower() == SUFFIX and place.is_file():
        return _open_zip(place)
    if not place.is_dir():
        raise MissingError(f"there is no dataset folder {printable(path)}.")
    return _open_shards(place, how) if kind == "webdataset" else _open_folders(place)


def _open_tables(path: Path, how: Reading) -> Parts:
    table = read_table(path)
    if strange := sorted(table.keys() - {"", *SPLITS}):
        raise InputError(
            f"{printable(str(path))} has a split named {printable(strange[0])}; they are train, test and val."
        )
    found: Parts = {split: partial(open_rows, path, rows, how.on_error) for split, rows in table.items()}
    return found or {"": partial(open_rows, path, [], how.on_error)}


def _open_zip(path: Path) -> Parts:
    entries, images = zip_entries(path)
    found: Parts = {"": partial(open_entries, entries, images, str(path))}
    for folder in SPLITS:
        below = [entry._replace(parts=entry.parts[1:]) for entry in entries if entry.parts[0] == folder]
        if inside := [entry for entry in below if entry.parts]:
            found[folder] = partial(open_entries, inside, images, f"{path}/{folder}")
    return found


def _open_folders(path: Path) -> Parts:
    found: Parts = {"": partial(open_class_folders, path)}
    for folder in SPLITS:
        if os.path.isdir(path / folder):
            found[folder] = partial(open_class_folders, path / folder)
        elif archives := _find_archives(path, folder):
            found[folder] = partial(open_archives, archives, folder)
    return found


def _open_shards(path: Path, how: Reading) -> Parts:
    try:
        files = [
            file.relative_to(path).as_posix()
            for file in path.rglob("*")
            if re.search(f"{TAR}$", file.name) and file.is_file()
        ]
    except OSError as error:
        raise InputError(f"folder {printable(str(path))} cannot be listed: {explain_error(error)}.") from error
    if not files:
        raise MissingError(f"there are no tar shards in {printable(str(path))}.")
    return {split: partial(open_webdataset, path, own, how.on_error) for split, own in by_split(sorted(files)).items()}


def _assign_roles(found: Parts) -> Parts:
    """Return splits by their roles: what is named val is the test set where no other is."""
    parts = {"train": found["train"]} if "train" in found else {}
    others = [name for name in TEST_FOLDERS if name in found]
    if others:
        parts["test"] = found[others[0]]
    if "train" in parts and others[:1] == ["test"] and len(others) > 1:
        parts["validation"] = found[others[1]]
    return parts


def _find_archives(path: Path, folder: str) -> list[Path]:
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise InputError(f"folder {printable(str(path))} cannot be listed: {explain_error(error)}.") from error
    found = [name for name in names if name.startswith(folder) and ARCHIVE.fullmatch(name.removeprefix(folder))]
    return [path / name for name in found if os.path.isfile(path / name)]
