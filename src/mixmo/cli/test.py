"""``mixmo test``: evaluate runs, or another program's predictions."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from mixmo.cli.options import JUDGING, add_judging
from mixmo.config.plan import parse
from mixmo.errors import InputError
from mixmo.reporting.testing import judge, judge_file
from mixmo.runs import Run


def run(words: list[str]) -> None:
    """``mixmo test RUN… [--ood DATASET …] [--per_class true] …`` or ``mixmo test --predictions FILE``."""
    parser = ArgumentParser(prog="mixmo test", exit_on_error=False)
    parser.add_argument("runs", nargs="*", type=str, help="runs' folders; several are judged as one ensemble")
    parser.add_argument("--predictions", type=str | None, default=None, help="an .npz file in place of runs")
    add_judging(parser)
    parser.add_argument("--per_class", type=bool, default=False, help="judge each class as well")
    chosen = parse(parser, words)
    if bool(chosen.runs) == (chosen.predictions is not None):
        raise InputError("test needs a run's folder, or several, or --predictions with a file.")
    if chosen.predictions is not None:
        if given := [name for name in JUDGING if chosen[name] != parser.get_default(name)]:
            raise InputError(f"--{given[0]} asks for a run; --predictions has nothing but what its file holds.")
        judge_file(chosen.predictions, chosen.per_class)
        return
    runs = [Run(path) for path in chosen.runs]
    judge(*runs, per_class=chosen.per_class, **{name: chosen[name] for name in JUDGING})
