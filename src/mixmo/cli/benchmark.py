"""``mixmo benchmark``: measure what MixMo costs on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mixmo.cli.options import Command
from mixmo.environment import environment
from mixmo.evaluation.benchmark import Benchmark, Rows, benchmark
from mixmo.files import check_place, is_marked, make_folder, write_text
from mixmo.names import printable
from mixmo.reporting.text_table import TextTable
from mixmo.validation import Boolean, Place, settings_class


@settings_class()
class Options:
    """Where measurements are kept."""

    save: Place | None = None
    """Keep the measurements in a JSON file."""
    overwrite: Boolean = False
    """Replace a file that mixmo did not write."""


COMMAND = Command(
    "benchmark", "Measure what MixMo costs on this machine, and what the fast settings buy.", (Options, Benchmark)
)


def run(words: list[str]) -> None:
    """``mixmo benchmark [--backbone NAME --batch_size 64 --num_members 2 …] [--save FILE]``."""
    (own, case), _ = COMMAND.read(words)
    if own.save is not None:
        check_place(Path(own.save), is_marked(Path(own.save)), own.overwrite)
    about = asdict(case) | {
        "device": str(case.device), "precision": case.fastest, "threads": torch.get_num_threads(),
    }  # fmt: skip
    report(benchmark(case), about, own.save)


def report(tables: Mapping[str, Rows], about: Mapping[str, Any], save: str | Path | None = None) -> None:
    """Print tables of numbers; keep them with the environment as JSON if a file is named."""
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for title, rows in tables.items():
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        cells = [
            [label, *(f"{row[column]:.5g}" if column in row else "" for column in columns)]
            for label, row in rows.items()
        ]
        TextTable(title, ["", *columns], cells).show()
    if save is not None:
        rounded = {
            title: {label: {key: float(f"{value:.5g}") for key, value in row.items()} for label, row in rows.items()}
            for title, rows in tables.items()
        }
        content = {"about": dict(about), "tables": rounded, "environment": environment()}
        make_folder(Path(save).parent)
        write_text(Path(save), json.dumps(content, indent=1) + "\n")
        print(f"kept in {printable(str(save))}")
