"""``mixmo compare``: networks side by side."""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from mixmo.cli.options import add_evaluation, add_overwrite, evaluation_options
from mixmo.config.plan import parse
from mixmo.names import printable
from mixmo.reporting.comparison_page import compare
from mixmo.reporting.tables import TextTable

ABOUT = "Compare networks by metrics and costs, with intervals of the differences."


def run(words: list[str]) -> None:
    """``mixmo compare RUN… [--out FOLDER]``."""
    parser = ArgumentParser(prog="mixmo compare", exit_on_error=False, description=ABOUT)
    what = "runs' folders, folders of runs that differ by seed, RUN+RUN (one ensemble) or .npz files; NAME= before"
    parser.add_argument("networks", nargs="+", type=str, help=what)
    parser.add_argument("--out", type=str, default="comparison", help="the folder to write into")
    add_overwrite(parser)
    add_evaluation(parser)
    chosen = parse(parser, words)
    out = Path(chosen.out)
    compare(chosen.networks, out, evaluation_options(chosen), show, overwrite=chosen.overwrite)
    print(f"written: {printable(str(out / 'comparison.csv'))}, comparison.md and comparison.html")


def show(table: TextTable) -> None:
    """Print a table, in full where the output is no terminal."""
    Console(width=None if sys.stdout.isatty() else 200).print(table.rich())
