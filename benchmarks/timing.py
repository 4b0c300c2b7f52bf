"""What the benchmarks share: interleaved timing, medians with their spread, results as JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mixmo.runs import environment

RESULTS = Path(__file__).parent / "results"


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Return seconds per call, ``rounds`` for each candidate, taken in turns: a noisy machine hits all alike."""
    for call in candidates.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float], against: list[float] | None = None) -> dict[str, float]:
    """Return the median in ms with its quartiles and, against another candidate, the median of paired ratios."""
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    figures = {"ms": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high}
    if against is not None:
        figures["ratio"] = statistics.median(a / b for a, b in zip(seconds, against, strict=True))
    return figures


def report(name: str, rows: Mapping[str, Mapping[str, float]], about: Mapping[str, Any], save: bool) -> None:
    """Print the rows as a table; keep them with the environment in ``results/NAME.json`` if asked to."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = Table(title=f"{name}: {', '.join(f'{key} {value}' for key, value in about.items())}")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for label, row in rows.items():
        table.add_row(label, *(f"{row[column]:.2f}" if column in row else "" for column in columns))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if save:
        RESULTS.mkdir(exist_ok=True)
        content = {"about": dict(about), "rows": rows, "environment": environment()}
        (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"kept in {RESULTS / name}.json")
