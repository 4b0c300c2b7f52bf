"""Files of predictions: CSV, JSON lines or NumPy arrays, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from mixmo.data.labels import SEPARATOR
from mixmo.deploy.image_predictions import ImagePredictions, LabelPredictions
from mixmo.errors import InputError
from mixmo.escaping import csv_cell
from mixmo.files import check_place, replace_file
from mixmo.reporting.text_table import TextTable

Found = ImagePredictions | LabelPredictions
Write = Callable[[Found], None]
COLUMNS = (
    "file", "class", "probability", "confidence", "top5", "total", "aleatoric", "epistemic", "agreement", "set",
    "defer",
)  # fmt: skip
LABEL_COLUMNS = ("file", "labels", "probabilities")
"""Those of images with several labels."""
LISTED = 5
"""Classes of a set that the terminal shows."""
SAID = {True: "yes", False: "no", None: ""}
NOTE = (
    "The set holds the true class as often as --coverage says; deferred are predictions too uncertain for "
    "--max_error_rate. --out FILE.csv has every column."
)


@contextmanager
def open_writer(out: Path | None, overwrite: bool = False, columns: Sequence[str] = COLUMNS) -> Iterator[Write]:
    """Take batches of predictions and write them into a .csv, .jsonl or .npz file, whole or not at all.

    Rows are those of :meth:`mixmo.deploy.image_predictions.ImagePredictions.rows`, whose keys are the columns; an .npz
    file has all tensors of :class:`~mixmo.deploy.image_predictions.ImagePredictions` by their names, ``names`` and
    ``classes``. Without a file a table is shown in a terminal, and comma-separated values are written to a standard
    output that is none.
    """
    if out is None:
        if not sys.stdout.isatty():
            yield _csv(sys.stdout, columns)
            return
        rows = list[dict[str, Any]]()
        yield lambda found: rows.extend(found.rows())
        if rows:
            table = _table(rows)
            table.show({name for name, *cells in zip(table.header, *table.rows, strict=True) if not any(cells)})
        return
    if (suffix := out.suffix.lower()) not in (".csv", ".jsonl", ".npz"):
        raise InputError(f"--out is {out}; predictions are written as .csv, .jsonl or .npz.")
    check_place(out, False, overwrite)
    with replace_file(out) as file:
        if suffix == ".npz":
            found = list[Found]()
            yield found.append
            np.savez(file, allow_pickle=False, **_arrays(found))
            return
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
        yield _csv(text, columns) if suffix == ".csv" else _json_lines(text)
        text.detach()  # writes what is left


def _table(rows: Sequence[dict[str, Any]]) -> TextTable:
    """Return what a reader at a terminal wants to know of each image."""
    if "labels" in rows[0]:
        return TextTable("", ["image", "labels"], [[row["file"], ", ".join(row["labels"])] for row in rows])
    certainty = "probability" if rows[0]["confidence"] is None else "confidence"
    cells = []
    for row in rows:
        classes, more = (row["set"] or [])[:LISTED], len(row["set"] or []) - LISTED
        agreement = "" if row["agreement"] is None else f"{100 * row['agreement']:.0f} %"
        held = ", ".join(classes) + (f" and {more} more" if more > 0 else "")
        cells.append([row["file"], row["class"], f"{100 * row[certainty]:.1f} %", held, agreement, SAID[row["defer"]]])
    header = ["image", "class", certainty, "set of classes", "members agree", "defer"]
    return TextTable("", header, cells, "" if certainty == "probability" else NOTE)


def _csv(file: IO[str], columns: Sequence[str]) -> Write:
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()

    def text(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            value = "; ".join(f"{name} {share:.4f}" for name, share in value.items())
        elif isinstance(value, list):
            value = (SEPARATOR if key == "labels" else "; ").join(value)  # labels as tables of images have them
        elif isinstance(value, bool):
            return SAID[value]
        return csv_cell(value) if isinstance(value, str) else value

    def write(found: Found) -> None:
        for row in found.rows():
            writer.writerow({key: text(key, value) for key, value in row.items()})

    return write


def _json_lines(file: IO[str]) -> Write:
    def write(found: Found) -> None:
        for row in found.rows():
            print(json.dumps(row, ensure_ascii=False), file=file)

    return write


def _arrays(found: list[Found]) -> dict[str, np.ndarray]:
    """Return the arrays of all batches by their names."""
    arrays = {"names": np.array([name for each in found for name in each.names], str)}
    arrays["classes"] = np.array(found[0].classes if found else [], str)
    for field in fields(found[0]) if found else ():
        parts = [part for each in found if isinstance(part := getattr(each, field.name), Tensor)]
        if parts:
            arrays[field.name] = (parts[0] if field.name == "thresholds" else torch.cat(parts)).numpy()
    return arrays
