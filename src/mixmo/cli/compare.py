"""``mixmo compare``: compare networks on one test set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from mixmo.cli.options import Command, Overwrite, Word
from mixmo.comparing import check_out, compare
from mixmo.escaping import printable
from mixmo.evaluation.results import EvaluationOptions
from mixmo.reporting.comparison_tables import ON_PAGES
from mixmo.validation import Place, settings_class


@settings_class()
class Options:
    """What is compared, and where it is written."""

    networks: Word[list[str]]
    """Runs' folders, folders of runs that differ by seed, RUN+RUN (one ensemble) or .npz files; NAME=… names one."""
    out: Place = "comparison"
    """The folder to write into."""
    overwrite: Overwrite = False


COMMAND = Command(
    "compare", "Compare networks by metrics and costs, with intervals of the differences.", (Options, EvaluationOptions)
)


def run(words: list[str]) -> None:
    """``mixmo compare RUN… [--out FOLDER]``."""
    (own, options), _ = COMMAND.read(words)
    out = Path(own.out)
    check_out(out, own.overwrite)
    comparison = compare(*own.networks, **asdict(options))
    for table in comparison.tables:
        table.show(ON_PAGES)
    comparison.write(out, own.overwrite, download=options.download)
    print(f"written: {printable(str(out / 'comparison.csv'))}, comparison.md and comparison.html")
