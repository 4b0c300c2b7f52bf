"""``mixmo sweep``: train a grid of runs and compare them."""

from __future__ import annotations

import math
from pathlib import Path

from mixmo.cli.options import Command, Positional
from mixmo.comparing import compare
from mixmo.data.messages import list_some
from mixmo.errors import StoppedError
from mixmo.escaping import message, printable
from mixmo.reporting.comparison_tables import PAGES_ONLY
from mixmo.sweeps import FILE, SweepRunner, load_sweep
from mixmo.validation import FilePath, settings_class


@settings_class()
class Options:
    """The sweep, and the output."""

    file: Positional[str]
    """A YAML file: a recipe with a section `sweep`; docs/sweeps.md shows one."""
    out: FilePath | None = None
    """The output folder; runs/FILE by default."""


COMMAND = Command(
    "sweep", "Train every combination of a grid with every seed and fold, and compare them.", (Options,), True
)


def run(arguments: list[str]) -> int:
    """Run ``mixmo sweep FILE [--out FOLDER] [--name value …]``; return 1 if some trials failed."""
    (chosen,), settings = COMMAND.parse(arguments)
    file = Path(chosen.file)
    folder = Path(chosen.out or f"runs/{file.stem}")
    runner = SweepRunner(load_sweep(file, settings), folder)
    try:
        runner.train()
    except (KeyboardInterrupt, SystemExit, StoppedError) as error:
        code = error.code if isinstance(error, StoppedError) else 130
        raise StoppedError(f"stopped; the same command resumes the sweep in {folder}.", code) from None
    print(f"{printable(str(folder / FILE))}: {runner.counts()}.")
    failed: dict[str, list[str]] = {}
    for key, why in runner.errors.items():
        failed.setdefault(why, []).append(key)
    for why, keys in failed.items():
        print(message(f"{list_some(keys)} failed: {why}"))
    _compare(runner)
    return 1 if runner.errors else 0


def _compare(runner: SweepRunner) -> None:
    """Compare finished configurations; report the best on validation data."""
    if not (groups := runner.groups()):
        return
    (best, score), note, chosen = runner.best(groups), "", ""
    if not math.isnan(score):
        chosen, note = best, f"Selected on validation data: {printable(best)}, {100 * score:.1f} %."
        print(note)
    settings, out = runner.trials[0].plan.settings, runner.folder / "comparison"
    download = settings.data.download or settings.model.download
    comparison = compare(*groups, download=download)
    for table in comparison.tables:
        table.show(PAGES_ONLY)
    comparison.write(out, note=note, chosen=chosen, download=download)
    print(f"written: {printable(str(out / 'comparison.html'))}")
