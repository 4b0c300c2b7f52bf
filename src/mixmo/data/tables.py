"""CSV tables of paths, labels, splits and groups."""

from __future__ import annotations

import csv
import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixmo.config.data_settings import DataSettings
from mixmo.data.decoding import explain_error
from mixmo.data.folders import FileImages
from mixmo.data.labels import SEPARATOR, number_labels
from mixmo.data.messages import list_some, warn_once
from mixmo.data.sources import Source, number_groups
from mixmo.errors import InputError, MissingError
from mixmo.escaping import printable
from mixmo.files import check_regular, describe_working_folder

COLUMN_NAMES = {"path": ("path", "file", "filename", "image"), "label": ("label", "class", "target"),
         "split": ("split", "set"), "group": ("group",)}  # fmt: skip
"""The columns of a table, and the names accepted for each."""

COLUMN = re.compile(r"{([^{}]*)}")
"""A column in a pattern of paths, such as ``train/{id}.jpg``."""

Table = dict[str, list[tuple[str, str, str]]]
"""(path, label, group) by split; splits and groups are empty without such a column."""


def read_table(file: Path, settings: DataSettings) -> Table:
    """Read the paths, labels and groups of a CSV file, by split.

    Its first line names the columns, by :data:`COLUMN_NAMES` or ``settings.columns``; commas, semicolons or tabs
    separate them. Paths are relative to the file's folder, or absolute. If images may have several labels, an empty
    cell means none.
    """
    shown = printable(str(file))
    if not os.path.isfile(file):
        raise MissingError(f"there is no table {shown}{describe_working_folder(file)}.")
    try:
        with file.open(newline="", encoding="utf-8-sig") as content:
            delimiter = max(",;\t", key=content.readline().count)
            content.seek(0)
            return _read_rows(csv.DictReader(content, strict=True, delimiter=delimiter), file, settings)
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        why = explain_error(error)
        raise InputError(f"{shown} cannot be read as comma-separated values in UTF-8: {why}.") from error


def _find_columns(names: Sequence[str], columns: Mapping[str, str], shown: str) -> list[str]:
    """Return the pattern of paths, and the columns of labels, splits and groups, empty if there is none."""
    exact = {name.strip().lower(): name for name in names}
    listed = ", ".join(map(printable, names)) or "none"
    chosen = {key: next((exact[name] for name in usual if name in exact), "") for key, usual in COLUMN_NAMES.items()}
    chosen |= columns
    if missing := [key for key in ("path", "label") if not chosen[key]]:
        raise InputError(
            f"{shown} has the columns {listed}; it needs path and label, and may have split and group. Name them, as "
            f"in data.columns: {{{', '.join(f'{key}: COLUMN' for key in missing)}}}."
        )
    if not COLUMN.search(chosen["path"]):
        chosen["path"] = f"{{{chosen['path']}}}"
    used = {name: "path" for name in COLUMN.findall(chosen["path"])}
    used |= {chosen[key]: key for key in ("label", "split", "group") if chosen[key]}
    if unknown := next((name for name in used if name not in names), None):
        raise InputError(f"data.columns names the column {unknown!r} for {used[unknown]}, but {shown} has {listed}.")
    if twice := next((name for name in used if names.count(name) > 1), None):
        raise InputError(f"{shown} has several columns named {printable(twice)}; rename or remove all but one.")
    if not chosen["group"] and (unused := [name for name in names if name not in used]):
        warn_once(
            f"{shown} has columns that are not used: {', '.join(map(printable, unused))}. If images with equal values "
            "of one (such as a patient) have to stay in one split, name it: "
            f"data.columns: {{group: {printable(unused[0])}}}."
        )
    return [chosen[key] for key in COLUMN_NAMES]


def _read_rows(reader: csv.DictReader[str], file: Path, settings: DataSettings) -> Table:
    shown, lines, split_of = printable(str(file)), dict[str, int](), dict[str, str]()
    resolve = functools.cache(os.path.realpath)  # a million images lie in few folders
    pattern, label_column, split_column, group_column = _find_columns(reader.fieldnames or (), settings.columns, shown)
    path_columns = COLUMN.findall(pattern)
    labelled = settings.on_error == "raise" and not settings.multi_label
    required = [*path_columns, *filter(None, (label_column if labelled else "", split_column, group_column))]
    table: Table = {}
    absent = []
    for row in reader:
        where = f"{shown}, line {reader.line_num},"
        if None in row or None in row.values():
            raise InputError(f"{where} does not have the columns of the first line.")
        if missing := [name for name in required if not row[name].strip()]:
            skip = "; leave such images out with data.on_error: skip, or"
            several = f"{skip} set data.multi_label to true if images may have several labels or none"
            hint = several if missing[0] == label_column else ""
            raise InputError(f"{where} has no {printable(missing[0])}{hint}.")
        path = pattern
        for name in path_columns:
            path = path.replace(f"{{{name}}}", row[name].strip())
        if "\\" in path and not os.path.lexists(os.path.join(file.parent, path)):
            path = path.replace("\\", "/")  # a path of Windows
        folder, name = os.path.split(os.path.join(file.parent, path))
        real = os.path.join(resolve(folder), name)
        real = os.path.realpath(real) if os.path.islink(real) else real
        if not _is_file(real, f"{where} names {printable(path)}"):
            absent.append(f"{printable(path)} in line {reader.line_num}")
        if real in lines:
            raise InputError(
                f"{where} repeats {printable(path)} of line {lines[real]}: an image has one row, so that none is both "
                "trained and tested on; remove one."
            )
        lines[real] = reader.line_num
        split = row[split_column].strip().lower() if split_column else ""
        group = row[group_column].strip() if group_column else ""
        if group and (other := split_of.setdefault(group, split)) != split:
            raise InputError(
                f"{where} has {group_column} {printable(group)} in {split}, but an earlier line has it in {other}: a "
                "group belongs to one split, so that none is both trained and tested on."
            )
        table.setdefault(split, []).append((path, row[label_column].strip(), group))
    if absent and settings.on_error == "raise":
        raise InputError(
            f"{shown} names {len(absent)} missing files ({list_some(absent)}); correct it, or continue without these "
            "images with data.on_error: skip."
        )
    return table


def _is_file(path: str, where: str) -> bool:
    """Return whether a file exists; refuse a pipe or a device."""
    try:
        check_regular(path)
    except InputError as error:
        raise InputError(f"{where}: {error}.") from error
    except FileNotFoundError:
        return False
    except OSError:  # reported when the file is read
        return True
    return True


def open_rows(file: Path, rows: list[tuple[str, str, str]], on_error: str, multi_label: bool = False) -> Source:
    """Return the images of rows of a table; the classes are their labels, sorted."""
    cells: list[Any] = [label for _, label, _ in rows]
    if multi_label:
        if joined := next((cell for cell in cells if SEPARATOR not in cell and re.search("[;,]", cell)), None):
            warn_once(
                f"{printable(str(file))} has the label {printable(joined)}, used as one class; several labels of an "
                f"image are separated by {SEPARATOR}."
            )
        cells = [[name for part in cell.split(SEPARATOR) if (name := part.strip())] for cell in cells]
    elif joined := next((cell for cell in cells if SEPARATOR in cell), None):
        warn_once(
            f"{printable(str(file))} has the label {printable(joined)}, used as one class; if {SEPARATOR} separates "
            "several labels of an image, set data.multi_label to true."
        )
    labels, classes = number_labels(cells, None, str(file), on_error)
    labelled = np.ones(len(rows), dtype=bool) if multi_label else labels >= 0
    paths, groups = ([row[column] for row, keep in zip(rows, labelled, strict=True) if keep] for column in (0, 2))
    numbers = number_groups(groups) if any(groups) else None
    return Source(labels[labelled], classes, FileImages(str(file.parent), paths), groups=numbers)
