"""Files of predictions: CSV, JSON lines or NumPy arrays, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from mixmo.deploy.image_predictions import ImagePredictions
from mixmo.errors import InputError
from mixmo.escaping import csv_cell
from mixmo.files import check_place, replace_file

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
        out: A file that ends in .csv, .jsonl or .npz; ``None`` writes comma-separated values to standard output.
        overwrite: Whether a file that is there already is replaced.

    Raises:
        InputError: if the ending is another, or the file exists or cannot be written; nothing is left half written.
    """
    if out is None:
        yield _csv(sys.stdout)
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
