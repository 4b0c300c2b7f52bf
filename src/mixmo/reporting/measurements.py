"""Output of ``mixmo benchmark`` and of the scripts in ``benchmarks/``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixmo.environment import environment
from mixmo.escaping import printable
from mixmo.evaluation.benchmark import Rows
from mixmo.files import make_folder, write_text
from mixmo.reporting.text_table import TextTable


def report(tables: Mapping[str, Rows], about: Mapping[str, Any], save: str | Path | None = None) -> None:
    """Print tables of numbers; save them as JSON, with the environment, if a file is named."""
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
        print(f"saved in {printable(str(save))}")
