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

from mixmo.deploy.image_predictions import ImagePredictions
from mixmo.errors import InputError
from mixmo.escaping import csv_cell
from mixmo.files import check_place, replace_file
from mixmo.reporting.text_table import TextTable

Write = Callable[[ImagePredictions], None]
COLUMNS = (
    "file", "class", "probability", "confidence", "top5", "total", "aleatoric", "epistemic", "agreement", "set",
    "defer",
)  # fmt: skip


@contextmanager
def open_writer(out: Path | None, overwrite: bool = False) -> Iterator[Write]:
    """Take batches of predictions and write them.

    Rows are those of :meth:`mixmo.deploy.image_predictions.ImagePredictions.rows`; an .npz file has all tensors of
    :class:`~mixmo.deploy.image_predictions.ImagePredictions` by their names, ``names`` and ``classes``.

    Args:
        out: A file that ends in .csv, .jsonl or .npz; ``None`` shows a table in a terminal, and writes comma-separated
            values to a standard output that is none.
        overwrite: Whether a file that is there already is replaced.

    Raises:
        InputError: if the ending is another, or the file exists or cannot be written; nothing is left half written.
    """
    if out is None:
        if not sys.stdout.isatty():
            yield _csv(sys.stdout)
            return
        rows = list[dict[str, Any]]()
        yield lambda found: rows.extend(found.rows())
        if rows:
            table = _table(rows)
            empty = {name for name, *cells in zip(table.header, *table.rows, strict=True) if not any(cells)}
            table.show(empty)
        return
    kinds = {".csv": _csv, ".jsonl": _json_lines}
    if (suffix := out.suffix.lower()) not in (*kinds, ".npz"):
        raise InputError(f"--out is {out}; predictions are written as .csv, .jsonl or .npz.")
    check_place(out, False, overwrite)
    with replace_file(out) as file:
        if suffix == ".npz":
            found = list[ImagePredictions]()
            yield found.append
            np.savez(file, allow_pickle=False, **_arrays(found))
            return
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
        yield kinds[suffix](text)
        text.detach()  # writes what is left


def _table(rows: Sequence[dict[str, Any]]) -> TextTable:
    """Return what a reader at a terminal wants to know of each image."""
    certainty = "probability" if rows[0]["confidence"] is None else "confidence"
    cells = []
    for row in rows:
        classes, more = (row["set"] or [])[:LISTED], len(row["set"] or []) - LISTED
        agreement = "" if row["agreement"] is None else f"{100 * row['agreement']:.0f} %"
        held = ", ".join(classes) + (f" and {more} more" if more > 0 else "")
        defer = {None: "", True: "yes", False: "no"}[row["defer"]]
        cells.append([row["file"], row["class"], f"{100 * row[certainty]:.1f} %", held, agreement, defer])
    header = ["image", "class", certainty, "set of classes", "members agree", "defer"]
    return TextTable("", header, cells, "" if certainty == "probability" else NOTE)


LISTED = 5
"""Classes of a set that the terminal shows."""
NOTE = (
    "The set holds the true class as often as --coverage says; deferred are predictions too uncertain for "
    "--max_error_rate. --out FILE.csv has every column."
)


def _csv(file: IO[str]) -> Write:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()

    def write(found: ImagePredictions) -> None:
        for row in found.rows():
            texts = {"file": csv_cell(row["file"]), "class": csv_cell(row["class"])}
            texts["top5"] = csv_cell("; ".join(f"{name} {share:.4f}" for name, share in row["top5"].items()))
            texts["set"] = "" if row["set"] is None else csv_cell("; ".join(row["set"]))
            texts["defer"] = {None: "", True: "yes", False: "no"}[row["defer"]]
            writer.writerow(row | texts)

    return write


def _json_lines(file: IO[str]) -> Write:
    def write(found: ImagePredictions) -> None:
        for row in found.rows():
            print(json.dumps(row, ensure_ascii=False), file=file)

    return write


def _arrays(found: list[ImagePredictions]) -> dict[str, np.ndarray]:
    """Return the arrays of all batches by their names."""
    arrays = {"names": np.array([name for each in found for name in each.names], str)}
    arrays["classes"] = np.array(found[0].classes if found else [], str)
    for field in fields(ImagePredictions):
        parts = [part for each in found if isinstance(part := getattr(each, field.name), Tensor)]
        if parts:
            arrays[field.name] = torch.cat(parts).numpy()
    return arrays
