"""``mixmo compare``: compare networks on a common test set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from mixmo.cli.options import Command, Overwrite, Positional
from mixmo.comparing import check_out, compare
from mixmo.escaping import printable
from mixmo.evaluation.results import EvaluationOptions
from mixmo.reporting.comparison_tables import PAGES_ONLY
from mixmo.validation import FilePath, settings_class


@settings_class()
class Options:
    """The networks, and the output."""

    networks: Positional[list[str]]
    """Runs, folders of runs that differ by seed, RUN+RUN (an ensemble) or .npz files; NAME=… sets a name."""
    out: FilePath = "comparison"
    """The output folder."""
    overwrite: Overwrite = False


COMMAND = Command(
    "compare", "Compare networks by metrics and costs, with intervals of differences.", (Options, EvaluationOptions)
)


def run(arguments: list[str]) -> None:
    """Run ``mixmo compare RUN… [--out FOLDER]``."""
    (chosen, options), _ = COMMAND.parse(arguments)
    out = Path(chosen.out)
    check_out(out, chosen.overwrite)
    comparison = compare(*chosen.networks, **asdict(options))
    for table in comparison.tables:
        table.show(PAGES_ONLY)
    comparison.write(out, chosen.overwrite, download=options.download)
    print(f"written: {printable(str(out / 'comparison.csv'))}, comparison.md and comparison.html")
