"""Answers as files: comma-separated values, JSON lines or Parquet, whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from mixmo.errors import InputError
from mixmo.files import check_place, replace_file
from mixmo.names import csv_cell, printable

Row = dict[str, Any]
Write = Callable[[Row], None]
NUMBERS = ("probability", "confidence", "total", "aleatoric", "epistemic", "agreement")
COLUMNS = ("file", "class", *NUMBERS[:2], "top5", *NUMBERS[2:], "set", "ask")


@contextmanager
def open_writer(out: Path | None, overwrite: bool = False) -> Iterator[Write]:
    """Take rows of answers (:meth:`mixmo.deploy.answers.Answers.rows`) and write them by the file's ending.

    Args:
        out: A file that ends in .csv, .jsonl or .parquet; ``None`` writes comma-separated values to standard output.
        overwrite: Whether a file that is there already is replaced.

    Raises:
        InputError: if the ending is another, the file exists or cannot be written, or Parquet's library is missing;
            nothing is left half written.
    """
    if out is None:
        yield _csv(sys.stdout)
        return
    kinds: dict[str, Any] = {".csv": _text(_csv), ".jsonl": _text(_json_lines), ".parquet": _parquet}
    if out.suffix.lower() not in kinds:
        raise InputError(f"--out is {out}; answers are written as .csv, .jsonl or .parquet.")
    check_place(out, False, overwrite)
    if out.suffix.lower() == ".parquet":
        _pyarrow(out)  # before anything is predicted
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


def _pyarrow(out: Path) -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(f"{out} needs pyarrow; `pip install 'mixmo[parquet]'` installs it.") from error


@contextmanager
def _parquet(file: IO[bytes]) -> Iterator[Write]:
    arrow, parquet = _pyarrow(Path("--out"))
    numbers = dict.fromkeys(NUMBERS, arrow.float64())
    kinds = {"file": arrow.string(), "class": arrow.string(), "ask": arrow.bool_(), **numbers}
    kinds |= {"top5": arrow.map_(arrow.string(), arrow.float64()), "set": arrow.list_(arrow.string())}
    schema = arrow.schema([(key, kinds[key]) for key in COLUMNS])
    waiting: list[Row] = []
    with parquet.ParquetWriter(file, schema) as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(arrow.Table.from_pylist(waiting, schema))
                waiting.clear()

        def write(row: Row) -> None:
            waiting.append(row | {"file": printable(row["file"]), "top5": list(row["top5"].items())})
            if len(waiting) >= 10_000:
                flush()

        yield write
        flush()
