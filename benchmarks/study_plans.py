"""Shared by studies and tuning: the plans of networks, their folders, and rows in CSV files."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from mixmo import __version__
from mixmo.config.plan import Plan, make_plan
from mixmo.config.recipes import combine_bases
from mixmo.errors import InputError

OTHER_SEED = 1000
"""Offset between the seeds of the networks of one ensemble."""
OWN_KEYS = ("passes", "networks", "methods", "start", "other_seed", "evaluate")
Rows = list[dict[str, str]]


def plans_of(parts: list[dict[str, Any]], seed: int, names: Mapping[str, str], start: str = "") -> Iterator[Plan]:
    """Yield the plan of each network of a method on a task."""
    own = [{key: value for key, value in part.items() if key not in OWN_KEYS} for part in parts]
    resolved = combine_bases(own, "the study")
    _, on_task, by_method = parts
    repetition = resolved["data"].get("batch_repetition", 1)
    epochs = on_task["passes"] * by_method.get("passes", 1) / repetition
    if epochs != int(epochs):
        raise InputError(f"{on_task['passes']} passes are no whole number of epochs at b = {repetition}.")
    name = resolved["data"]["name"]
    first = int(by_method.get("other_seed", False))
    for number in range(by_method.get("networks", 1)):
        values = {
            "seed": seed + OTHER_SEED * (first + number),
            "data.split_seed": seed,
            "data.name": names.get(name, name),
            "trainer.max_epochs": int(epochs),
        } | ({"model.pretrained": start} if start else {})
        yield make_plan(resolved, values)


def folder_of(plan: Plan, scratch: Path) -> Path:
    """Return the folder of a network; equal plans share it."""
    return scratch / hashlib.sha256(f"{__version__} {plan.yaml}".encode()).hexdigest()[:16]


def stop_with(parent: int) -> None:
    """End this process if its parent dies, since nobody would write the row."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def digest_of(parts: Sequence[Mapping[str, Any]], *others: Any) -> str:
    """Return a digest of a row's settings in the study.

    Args:
        parts: The study's settings, the task and the method. A task's list of methods does not count.
        others: Other values that determine the row.

    Example:
        >>> one, other = {"passes": 2, "methods": ["a"]}, {"methods": ["a", "b"], "passes": 2}
        >>> digest_of([one]) == digest_of([other]) != digest_of([other], 1)
        True
    """
    own = [{key: value for key, value in part.items() if key not in ("methods", "evaluate")} for part in parts]
    return hashlib.sha256(json.dumps([own, others], sort_keys=True).encode()).hexdigest()[:12]


def name_row(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return a row's name, made of its key columns."""
    return ", ".join(str(row[key]) for key in keys)


def has_row(rows: Rows, about: Mapping[str, Any], keys: Sequence[str], file: Path) -> bool:
    """Return whether a file has a row.

    Args:
        rows: The file's rows.
        about: The row's columns known in advance; ``digest`` is that of its settings.
        keys: The columns that identify a row.
        file: Named in the error.

    Raises:
        InputError: if the file has the row with different settings: the study was edited since.
    """
    name = name_row(about, keys)
    found = [row for row in rows if name_row(row, keys) == name]
    if found and found[0].get("digest") != about["digest"]:
        raise InputError(
            f"{file} has the row {name} with other settings than the study says now; undo the edit, take "
            "another --out, or delete that row."
        )
    return bool(found)


def append(file: Path, row: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Append a row to a CSV file, with a header if it is new; return whether its keys were new.

    Several processes, also on several machines, may append to one file; the first version of a row counts.

    Args:
        file: The file.
        row: Values by column.
        keys: The columns that identify a row.

    Raises:
        InputError: if the file has different columns.
    """
    with FileLock(file.with_name(f".{file.name}.lock")):
        known = read_rows(file)
        if known and list(known[0]) != list(row):
            raise InputError(f"{file} has other columns than {', '.join(row)}; name another --out.")
        if any(name_row(each, keys) == name_row(row, keys) for each in known):
            print(f"{file} has {name_row(row, keys)} from elsewhere already.", flush=True)
            return False
        with file.open("a", newline="") as content:
            writer = csv.DictWriter(content, list(row))
            if not known:
                writer.writeheader()
            writer.writerow(row)
    return True


def read_rows(file: Path) -> Rows:
    """Return the rows of a CSV file, none if it does not exist."""
    if not file.exists():
        return []
    with file.open(newline="") as content:
        return list(csv.DictReader(content))
