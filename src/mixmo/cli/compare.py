"""``mixmo compare``: networks side by side."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from mixmo.cli.options import add_evaluation, evaluation_options
from mixmo.config.plan import parse
from mixmo.reporting.comparison_page import compare


def run(words: list[str]) -> None:
    """``mixmo compare RUN… [--out FOLDER]``."""
    parser = ArgumentParser(prog="mixmo compare", exit_on_error=False)
    what = "runs' folders, folders of runs that differ by seed, RUN+RUN (one ensemble) or .npz files; NAME= before"
    parser.add_argument("networks", nargs="+", type=str, help=what)
    parser.add_argument("--out", type=str, default="comparison", help="the folder to write into")
    add_evaluation(parser)
    chosen = parse(parser, words)
    compare(chosen.networks, Path(chosen.out), evaluation_options(chosen))
