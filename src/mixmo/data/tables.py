"""CSV tables of paths, labels and splits."""

from __future__ import annotations

import csv
import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
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

KNOWN = {"path": ("path", "file", "filename", "image"), "label": ("label", "class", "target"),
         "split": ("split", "set"), "group": ("group",)}  # fmt: skip
"""The columns of a table, and the names that are accepted for each."""

COLUMN = re.compile(r"{([^{}]*)}")
"""A column's place in a pattern of paths, such as ``train/{id}.jpg``."""

Table = dict[str, list[tuple[str, str, str]]]
"""(path, label, group) by split; splits and groups are empty where there is no such column."""


def read_table(file: Path, multi_label: bool = False, columns: Mapping[str, str] = MappingProxyType({})) -> Table:
    """Return the paths, labels and groups of a CSV file by split.

    Its first line names the columns, as :data:`KNOWN` or ``columns`` have them; commas, semicolons or tabs are between
    them. Paths are below the file's folder, unless they are absolute. If images may have several labels, one with an
    empty cell shows none of the classes.
    """
    shown = printable(str(file))
    if not os.path.isfile(file):
        raise MissingError(f"there is no table {shown}.")
    try:
        with file.open(newline="", encoding="utf-8-sig") as content:
            delimiter = max(",;\t", key=content.readline().count)
            content.seek(0)
            return _rows(csv.DictReader(content, strict=True, delimiter=delimiter), file, multi_label, columns)
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        why = explain_error(error)
        raise InputError(f"{shown} cannot be read as comma-separated values in UTF-8: {why}.") from error


def _find_columns(names: Sequence[str], columns: Mapping[str, str], shown: str) -> list[str]:
    """Return the pattern of paths, and the columns of labels, splits and groups, empty where there are none."""
    plain = {name.strip().lower(): name for name in names}
    listed = ", ".join(map(printable, names)) or "none"
    found = {key: next((plain[name] for name in usual if name in plain), "") for key, usual in KNOWN.items()}
    found |= columns
    if missing := [key for key in ("path", "label") if not found[key]]:
        raise InputError(
            f"{shown} has the columns {listed}; it needs path and label, and may have split and group. Say which is "
            f"meant, as in --data.columns '{{{', '.join(f'{key}: COLUMN' for key in missing)}}}'."
        )
    if not COLUMN.search(found["path"]):
        found["path"] = f"{{{found['path']}}}"
    used = {name: "path" for name in COLUMN.findall(found["path"])}
    used |= {found[key]: key for key in ("label", "split", "group") if found[key]}
    if unknown := next((name for name in used if name not in names), None):
        raise InputError(f"data.columns names the column {unknown!r} for {used[unknown]}, but {shown} has {listed}.")
    if not found["group"] and (unused := [name for name in names if name not in used]):
        warn_once(
            f"{shown} has columns that are not used: {', '.join(map(printable, unused))}. If one says which images "
            "belong together (of one patient, say), name it, so that they stay in one split: "
            f"--data.columns '{{group: {printable(unused[0])}}}'."
        )
    return [found[key] for key in KNOWN]


def _rows(reader: csv.DictReader[str], file: Path, multi_label: bool, columns: Mapping[str, str]) -> Table:
    shown, lines, homes = printable(str(file)), dict[str, int](), dict[str, str]()
    folder_of = functools.cache(os.path.realpath)  # a million images lie in few folders
    pattern, label, split, group = _find_columns(reader.fieldnames or (), columns, shown)
    asked = COLUMN.findall(pattern)
    needed = [*asked, *filter(None, ("" if multi_label else label, split, group))]
    rows: Table = {}
    for row in reader:
        if None in row or None in row.values():
            raise InputError(f"{shown}, line {reader.line_num}, does not have the columns of the first line.")
        if missing := [name for name in needed if not row[name].strip()]:
            several = "; if images may have several labels or none, set --data.multi_label true"
            hint = several if missing[0] == label else ""
            raise InputError(f"{shown}, line {reader.line_num}, has no {printable(missing[0])}{hint}.")
        written = pattern
        for name in asked:
            written = written.replace(f"{{{name}}}", row[name].strip())
        if "\\" in written and not os.path.lexists(os.path.join(file.parent, written)):
            written = written.replace("\\", "/")  # as Windows writes paths
        folder, name = os.path.split(os.path.join(file.parent, written))
        place = os.path.join(folder_of(folder), name)
        place = os.path.realpath(place) if os.path.islink(place) else place
        _check_image(place, f"{shown}, line {reader.line_num}, names {printable(written)}")
        if place in lines:
            raise InputError(
                f"{shown}, line {reader.line_num}, repeats {printable(written)} of line {lines[place]}: "
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
        rows.setdefault(part, []).append((written, row[label].strip(), kin))
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
