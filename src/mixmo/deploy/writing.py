"""Prediction files: CSV or JSON lines, written atomically."""

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
from mixmo.files import check_place, replace_file
from mixmo.names import csv_cell

Row = dict[str, Any]
Write = Callable[[Row], None]
NUMBERS = ("probability", "confidence", "total", "aleatoric", "epistemic", "agreement")
COLUMNS = ("file", "class", *NUMBERS[:2], "top5", *NUMBERS[2:], "set", "ask")


@contextmanager
def open_writer(out: Path | None, overwrite: bool = False) -> Iterator[Write]:
    """Take rows of answers (:meth:`mixmo.deploy.answers.Answers.rows`) and write them by the file's ending.

    Args:
        out: A file that ends in .csv or .jsonl; ``None`` writes comma-separated values to standard output.
        overwrite: Whether a file that is there already is replaced.

    Raises:
        InputError: if the ending is another, or the file exists or cannot be written; nothing is left half written.
    """
    if out is None:
        yield _csv(sys.stdout)
        return
    kinds: dict[str, Any] = {".csv": _text(_csv), ".jsonl": _text(_json_lines)}
    if out.suffix.lower() not in kinds:
        raise InputError(f"--out is {out}; answers are written as .csv or .jsonl.")
    check_place(out, False, overwrite)
    with replace_file(out) as file, kinds[out.suffix.lower()](file) as write:
        yield write


def _csv(file: IO[str]) -> Write:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()

    def write(row: Row) -> None:
        texts = {"file": csv_cell(row["file"]), "class": csv_cell(row["class"])}
        texts["top5"] = csv_cell("; ".join(f"{name} {share:.4f}" for name, share in row["top5"].items()))
        texts["set"] = "" if row["set"] is None else csv_cell("; ".join(row["set"]))
        texts["ask"] = {None: "", True: "yes", False: "no"}[row["ask"]]
        writer.writerow(row | texts)

    return write


def _json_lines(file: IO[str]) -> Write:
    return lambda row: print(json.dumps(row, ensure_ascii=False), file=file)


def _text(kind: Callable[[IO[str]], Write]) -> Any:
    @contextmanager
    def opened(file: IO[bytes]) -> Iterator[Write]:
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
        try:
            yield kind(text)
            text.flush()
        finally:
            text.detach()

    return opened
