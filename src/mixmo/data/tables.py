"""CSV tables of paths, labels and splits."""

from __future__ import annotations

import csv
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from mixmo.data.decoding import explain_error
from mixmo.data.folders import FileImages
from mixmo.data.labels import SEPARATOR, number_labels
from mixmo.data.messages import warn_once
from mixmo.data.sources import Source
from mixmo.errors import InputError, MissingError
from mixmo.escaping import printable
from mixmo.files import check_regular

KNOWN = (("path", "file", "filename", "image"), ("label", "class", "target"), ("split", "set"), ("group",))
"""Accepted names of the columns of paths, labels, splits and groups."""

Table = dict[str, list[tuple[str, str, str]]]
"""(path, label, group) by split; splits and groups are empty where there is no such column."""


def read_table(file: Path, multi_label: bool = False) -> Table:
    """Return the paths, labels and groups of a CSV file by split.

    Its first line names the columns of :data:`KNOWN`. Paths are below the file's folder, unless they are absolute. If
    images may have several labels, one with an empty cell shows none of the classes.
    """
    shown = printable(str(file))
    if not os.path.isfile(file):
        raise MissingError(f"there is no table {shown}.")
    try:
        with file.open(newline="", encoding="utf-8-sig") as content:
            return _rows(csv.DictReader(content, strict=True), file, multi_label)
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        why = explain_error(error)
        raise InputError(f"{shown} cannot be read as comma-separated values in UTF-8: {why}.") from error


def _rows(reader: csv.DictReader[str], file: Path, multi_label: bool) -> Table:
    shown, lines, homes = printable(str(file)), dict[str, int](), dict[str, str]()
    folder_of = functools.cache(os.path.realpath)  # a million images lie in few folders
    names = {name.strip().lower(): name for name in reader.fieldnames or ()}
    path, label, split, group = (next((names[name] for name in known if name in names), None) for known in KNOWN)
    if path is None or label is None:
        raise InputError(
            f"{shown} has the columns {', '.join(map(printable, names)) or 'none'}; it needs path and label, and may "
            "have split and group."
        )
    rows: Table = {}
    for row in reader:
        if None in row or None in row.values():
            raise InputError(f"{shown}, line {reader.line_num}, does not have the columns of the first line.")
        needed = [name for name in (path, None if multi_label else label, split, group) if name is not None]
        if missing := [name for name in needed if not row[name].strip()]:
            raise InputError(f"{shown}, line {reader.line_num}, has no {printable(missing[0])}.")
        folder, name = os.path.split(os.path.join(file.parent, row[path].strip()))
        place = os.path.join(folder_of(folder), name)
        place = os.path.realpath(place) if os.path.islink(place) else place
        _check_image(place, f"{shown}, line {reader.line_num}, names {printable(row[path])}")
        if place in lines:
            raise InputError(
                f"{shown}, line {reader.line_num}, repeats {printable(row[path])} of line {lines[place]}: "
                "an image has one row, so that none is both trained and tested on; remove one."
            )
        lines[place] = reader.line_num
        part = row[split].strip().lower() if split else ""
        kin = row[group].strip() if group else ""
        if kin and (home := homes.setdefault(kin, part)) != part:
            raise InputError(
                f"{shown}, line {reader.line_num}, has {group} {printable(kin)} in {part}, but an earlier line has it "
                f"in {home}: a group belongs to one split, so that none is both trained and tested on."
            )
        rows.setdefault(part, []).append((row[path].strip(), row[label].strip(), kin))
    return rows


def _check_image(place: str, where: str) -> None:
    """Refuse a pipe or a device in place of an image; missing files are reported when they are read."""
    try:
        check_regular(place)
    except InputError as error:
        raise InputError(f"{where}: {error}.") from error
    except OSError:
        return


def open_rows(file: Path, rows: list[tuple[str, str, str]], on_error: str, multi_label: bool = False) -> Source:
    """Return the images of some rows of a table; classes are its labels, sorted."""
    cells: list[Any] = [label for _, label, _ in rows]
    if multi_label:
        cells = [[name for each in cell.split(SEPARATOR) if (name := each.strip())] for cell in cells]
    elif joined := next((cell for cell in cells if SEPARATOR in cell), None):
        warn_once(
            f"{printable(str(file))} has the label {printable(joined)}, taken as one class; if {SEPARATOR} stands "
            "between several labels of an image, set --data.multi_label true."
        )
    labels, classes = number_labels(cells, None, str(file), on_error)
    kept = np.ones(len(rows), dtype=bool) if multi_label else labels >= 0
    paths, groups = ([row[column] for row, own in zip(rows, kept, strict=True) if own] for column in (0, 2))
    numbers = np.unique(groups, return_inverse=True)[1] if any(groups) else None
    return Source(labels[kept], classes, FileImages(str(file.parent), paths), groups=numbers)
