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
from mixmo.data.messages import list_some
from mixmo.deploy.image_predictions import ImagePredictions, LabelPredictions
from mixmo.errors import InputError
from mixmo.escaping import csv_cell
from mixmo.files import check_output_path, replace_file
from mixmo.reporting.text_table import TextTable

AnyPredictions = ImagePredictions | LabelPredictions
WriteBatch = Callable[[AnyPredictions], None]
COLUMNS = (
    "file", "class", "probability", "confidence", "top5", "total", "aleatoric", "epistemic", "agreement", "set",
    "defer",
)  # fmt: skip
LABEL_COLUMNS = ("file", "labels", "probabilities")
"""Columns for images with several labels."""
MOST_IN_SET = 5
"""Classes of a set shown in the terminal."""
YES_NO = {True: "yes", False: "no", None: ""}
NOTE = (
    "Sets contain the true class at the rate of --coverage; predictions too uncertain for --max_error_rate are "
    "deferred. --out FILE.csv has every column."
)


@contextmanager
def open_writer(out: Path | None, overwrite: bool = False, columns: Sequence[str] = COLUMNS) -> Iterator[WriteBatch]:
    """Yield a function that writes batches of predictions to a .csv, .jsonl or .npz file, whole or not at all.

    The keys of :meth:`mixmo.deploy.image_predictions.ImagePredictions.rows` are the columns; an .npz file has all
    tensors of the predictions by name, ``names`` and ``classes``. Without a file, a terminal shows a table; any other
    standard output gets comma-separated values.
    """
    if out is None:
        if not sys.stdout.isatty():
            yield _csv(sys.stdout, columns)
            return
        rows = list[dict[str, Any]]()
        yield lambda predictions: rows.extend(predictions.rows())
        if rows:
            table = _table(rows)
            table.show({name for name, *cells in zip(table.header, *table.rows, strict=True) if not any(cells)})
        return
    if (suffix := out.suffix.lower()) not in (".csv", ".jsonl", ".npz"):
        raise InputError(f"out is {out}; predictions are written as .csv, .jsonl or .npz.")
    check_output_path(out, False, overwrite)
    with replace_file(out) as file:
        if suffix == ".npz":
            batches = list[AnyPredictions]()
            yield batches.append
            np.savez(file, allow_pickle=False, **_arrays(batches))
            return
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
        yield _csv(text, columns) if suffix == ".csv" else _json_lines(text)
        text.detach()  # flushes


def _table(rows: Sequence[dict[str, Any]]) -> TextTable:
    """Return the table that a terminal shows."""
    if "labels" in rows[0]:
        return TextTable("", ["image", "labels"], [[row["file"], ", ".join(row["labels"])] for row in rows])
    certainty = "probability" if rows[0]["confidence"] is None else "confidence"
    cells = []
    for row in rows:
        agreement = "" if row["agreement"] is None else f"{100 * row['agreement']:.0f} %"
        probability, names = f"{100 * row[certainty]:.1f} %", list_some(row["set"] or [], MOST_IN_SET)
        cells.append([row["file"], row["class"], probability, names, agreement, YES_NO[row["defer"]]])
    header = ["image", "class", certainty, "set of classes", "members agree", "defer"]
    return TextTable("", header, cells, "" if certainty == "probability" else NOTE)


def _csv(file: IO[str], columns: Sequence[str]) -> WriteBatch:
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()

    def text(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            value = "; ".join(f"{name} {probability:.4f}" for name, probability in value.items())
        elif isinstance(value, list):
            value = (SEPARATOR if key == "labels" else "; ").join(value)  # as in CSV tables of images
        elif isinstance(value, bool):
            return YES_NO[value]
        return csv_cell(value) if isinstance(value, str) else value

    def write(predictions: AnyPredictions) -> None:
        for row in predictions.rows():
            writer.writerow({key: text(key, value) for key, value in row.items()})

    return write


def _json_lines(file: IO[str]) -> WriteBatch:
    def write(predictions: AnyPredictions) -> None:
        for row in predictions.rows():
            print(json.dumps(row, ensure_ascii=False), file=file)

    return write


def _arrays(batches: list[AnyPredictions]) -> dict[str, np.ndarray]:
    """Return the concatenated arrays of all batches by name."""
    arrays = {"names": np.array([name for batch in batches for name in batch.names], str)}
    arrays["classes"] = np.array(batches[0].classes if batches else [], str)
    for field in fields(batches[0]) if batches else ():
        parts = [part for batch in batches if isinstance(part := getattr(batch, field.name), Tensor)]
        if parts:
            arrays[field.name] = (parts[0] if field.name == "thresholds" else torch.cat(parts)).numpy()
    return arrays
