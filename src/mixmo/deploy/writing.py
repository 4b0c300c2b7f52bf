"""Files of predictions: CSV or JSON lines, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mixmo.errors import InputError
from mixmo.escaping import csv_cell
from mixmo.files import check_place, replace_file

Row = dict[str, Any]
Write = Callable[[Row], None]
COLUMNS = (
    "file", "class", "probability", "confidence", "top5", "total", "aleatoric", "epistemic", "agreement", "set",
    "defer",
)  # fmt: skip


@contextmanager
def open_writer(out: Path | None, overwrite: bool = False) -> Iterator[Write]:
    """Take rows of predictions (:meth:`mixmo.deploy.image_predictions.ImagePredictions.rows`) and write them.

    Args:
        out: A file that ends in .csv or .jsonl; ``None`` writes comma-separated values to standard output.
        overwrite: Whether a file that is there already is replaced.

    Raises:
        InputError: if the ending is another, or the file exists or cannot be written; nothing is left half written.
    """
    if out is None:
        yield _csv(sys.stdout)
        return
    kinds = {".csv": _csv, ".jsonl": _json_lines}
    if out.suffix.lower() not in kinds:
        raise InputError(f"--out is {out}; predictions are written as .csv or .jsonl.")
    check_place(out, False, overwrite)
    with replace_file(out) as file:
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
        yield kinds[out.suffix.lower()](text)
        text.detach()  # writes what is left


def _csv(file: IO[str]) -> Write:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()

    def write(row: Row) -> None:
        texts = {"file": csv_cell(row["file"]), "class": csv_cell(row["class"])}
        texts["top5"] = csv_cell("; ".join(f"{name} {share:.4f}" for name, share in row["top5"].items()))
        texts["set"] = "" if row["set"] is None else csv_cell("; ".join(row["set"]))
        texts["defer"] = {None: "", True: "yes", False: "no"}[row["defer"]]
        writer.writerow(row | texts)

    return write


def _json_lines(file: IO[str]) -> Write:
    return lambda row: print(json.dumps(row, ensure_ascii=False), file=file)
