"""One's own images: the splits of a folder, a zip file or a table, or all of them where there are none."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mixmo.data.archives import open_archives
from mixmo.data.decoding import why
from mixmo.data.folders import open_class_folders
from mixmo.data.sources import Source
from mixmo.data.tables import open_rows, read_table
from mixmo.data.zips import SUFFIX, open_entries, zip_entries
from mixmo.errors import InputError, MissingError
from mixmo.names import printable

KINDS = ("folder", "csv")
VALIDATION_FOLDERS = ("val", "valid", "validation")
TEST_FOLDERS = ("test", *VALIDATION_FOLDERS)
ARCHIVE = re.compile(r"(-.+)?\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz)")
"""What follows a split's name in the names of its tar files."""


Parts = dict[str, Callable[[], Source]]
"""How each split is opened."""


def open_local(kind: str, path: Path, split: str) -> Source:
    """Return one split of one's own images.

    Args:
        kind: ``folder``, whose path may be a zip file, or ``csv``.
        path: Where they are.
        split: ``train``, ``validation``, ``test``, or ``all`` where there are none of these.

    Raises:
        MissingError: if it is missing or empty, or has no such split.
        InputError: if it cannot be read.
    """
    parts = local_splits(kind, path)
    if split == "all" and not parts:
        return _whole(kind, path)
    if split not in parts:
        wanted = ("train",) if split == "train" else TEST_FOLDERS if split == "test" else VALIDATION_FOLDERS
        raise MissingError(
            f"{printable(str(path))} has no images for {split}: nothing in it is named {' or '.join(wanted)}."
        )
    return parts[split]()


def local_splits(kind: str, path: Path) -> Parts:
    """Return the splits of a folder, a zip file or a table; nothing where there are none."""
    found: dict[str, Callable[[], Source]] = {}
    if kind == "csv":
        table = read_table(path)
        found = {split: partial(open_rows, path, rows) for split, rows in table.items() if split}
        if strange := sorted(found.keys() - {"train", *TEST_FOLDERS}):
            raise InputError(
                f"{printable(str(path))} has a split named {printable(strange[0])}; they are train, test and val."
            )
    elif path.suffix.lower() == SUFFIX and path.is_file():
        entries, images = zip_entries(path)
        for folder in ("train", *TEST_FOLDERS):
            below = [entry._replace(parts=entry.parts[1:]) for entry in entries if entry.parts[0] == folder]
            if inside := [entry for entry in below if entry.parts]:
                found[folder] = partial(open_entries, inside, images, f"{path}/{folder}")
    else:
        if not os.path.isdir(path):
            raise MissingError(f"there is no dataset folder {printable(str(path))}.")
        for folder in ("train", *TEST_FOLDERS):
            if os.path.isdir(path / folder):
                found[folder] = partial(open_class_folders, path / folder)
            elif archives := _archives(path, folder):
                found[folder] = partial(open_archives, archives, folder)
    return _by_role(found)


def _by_role(found: Parts) -> Parts:
    """Return splits by their roles: what is named val is the test set where no other is."""
    parts = {"train": found["train"]} if "train" in found else {}
    others = [name for name in TEST_FOLDERS if name in found]
    if others:
        parts["test"] = found[others[0]]
    if "train" in parts and others[:1] == ["test"] and len(others) > 1:
        parts["validation"] = found[others[1]]
    return parts


def _whole(kind: str, path: Path) -> Source:
    if kind == "csv":
        return open_rows(path, [row for rows in read_table(path).values() for row in rows])
    if path.suffix.lower() == SUFFIX and path.is_file():
        return open_entries(*zip_entries(path), str(path))
    return open_class_folders(path)


def _archives(path: Path, folder: str) -> list[Path]:
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise InputError(f"folder {printable(str(path))} cannot be listed: {why(error)}.") from error
    found = [name for name in names if name.startswith(folder) and ARCHIVE.fullmatch(name.removeprefix(folder))]
    return [path / name for name in found if os.path.isfile(path / name)]
