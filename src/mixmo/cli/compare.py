"""``mixmo compare``: compare networks on one test set."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from mixmo.cli.options import Command, Word
from mixmo.evaluation.results import EvaluationOptions
from mixmo.names import printable
from mixmo.reporting.comparison_page import compare
from mixmo.reporting.tables import TextTable
from mixmo.validation import Boolean, Place, settings_class


@settings_class()
class Options:
    """What is compared, and where it is written."""

    networks: Word[list[str]]
    """Runs' folders, folders of runs that differ by seed, RUN+RUN (one ensemble) or .npz files; NAME= before."""
    out: Place = "comparison"
    """The folder to write into."""
    overwrite: Boolean = False
    """Replace files that mixmo did not write there."""


COMMAND = Command(
    "compare", "Compare networks by metrics and costs, with intervals of the differences.", (Options, EvaluationOptions)
)


def run(words: list[str]) -> None:
    """``mixmo compare RUN… [--out FOLDER]``."""
    (own, evaluation), _ = COMMAND.read(words)
    out = Path(own.out)
    compare(own.networks, out, evaluation, show, overwrite=own.overwrite)
    print(f"written: {printable(str(out / 'comparison.csv'))}, comparison.md and comparison.html")


def show(table: TextTable) -> None:
    """Print a table, in full where the output is no terminal."""
    Console(width=None if sys.stdout.isatty() else 200).print(table.rich())
