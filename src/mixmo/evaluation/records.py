"""Checked reading of a run's training history."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mixmo.errors import InputError, reason
from mixmo.runs import RunFolder


def read_history(run: RunFolder) -> list[dict[str, float]]:
    """Return the rows of ``metrics.csv`` as numbers, NaN where a cell is empty; none if there is no such file.

    Raises:
        InputError: if it is damaged, naming the row and the column.
    """
    rows = []
    for number, row in enumerate(run.read_metrics(), 1):
        found: dict[str, float] = {}
        for key, text in row.items():
            try:
                found[key] = float(text or "nan")
            except ValueError as error:
                raise InputError(f"{run.metrics_file} is damaged: row {number} has {text!r} for {key!r}.") from error
        for key in ("epoch", "step", "seconds"):
            if not math.isfinite(found.get(key, math.nan)):
                raise InputError(f"{run.metrics_file} is damaged: row {number} has no number for {key!r}.")
        rows.append(found)
    return rows


def read_known_history(run: RunFolder) -> list[dict[str, float]]:
    """Return the rows of :func:`read_history`; none if the file is damaged, which the report says."""
    try:
        return read_history(run)
    except InputError:
        return []


def validation_score(row: Mapping[str, float]) -> float:
    """Return the accuracy on validation images in a row of a run's metrics, or the mAP of several labels, or NaN."""
    return row.get("val_map", row.get("val_accuracy", math.nan))


def read_environment(run: RunFolder) -> dict[str, Any]:
    """Return ``environment.json``; raise an :class:`InputError` if it is missing or damaged."""
    file = run.path / "environment.json"
    try:
        content = run.read_json(file.name)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {reason(error)}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("command"), str):
        raise InputError(f"{file} is damaged: it names no command.")
    return content
