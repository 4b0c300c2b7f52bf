"""``mixmo sweep``: many runs from one file, one after the other or on Ray, and the comparison of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mixmo.cli.compare import show
from mixmo.cli.options import Command, Word
from mixmo.errors import StoppedError
from mixmo.evaluation.results import EvaluationOptions
from mixmo.names import message, printable
from mixmo.reporting.comparison_page import compare
from mixmo.sweeps.grid import Sweep, load_sweep
from mixmo.sweeps.on_ray import Resources
from mixmo.sweeps.progress import FILE, Progress
from mixmo.sweeps.run import compared, run_sweep
from mixmo.validation import Boolean, Count, Number, Place, settings_class


@settings_class()
class Options:
    """Which trials are trained, where and on what."""

    file: Word[str]
    """A YAML file: a recipe with a section `sweep`; docs/sweeps.md shows one."""
    out: Place | None = None
    """The folder of the trials; runs/NAME by default."""
    ray: Boolean | None = None
    """Train on Ray; by default where it is installed."""
    address: Place | None = None
    """Of a Ray cluster, auto to look for one."""
    cpus: Count | None = None
    """Cores of each trial."""
    gpus: Annotated[Number, Field(ge=0)] | None = None
    """GPUs of each trial, 0.5 for two on one."""


COMMAND = Command(
    "sweep", "Train many runs from one file (a grid, random search, seeds), and compare them.", (Options,), True
)


def run(words: list[str]) -> int:
    """``mixmo sweep FILE [--out FOLDER] [--address ADDRESS] [--name value …]``; 1 if some trials failed."""
    (chosen,), settings = COMMAND.read(words)
    file = Path(chosen.file)
    sweep = load_sweep(file, settings)
    folder = Path(chosen.out or f"runs/{file.stem}")
    try:
        progress = run_sweep(sweep, folder, chosen.ray, chosen.address, Resources(chosen.cpus, chosen.gpus))
    except (KeyboardInterrupt, SystemExit, StoppedError) as error:
        code = error.code if isinstance(error, StoppedError) else 130
        raise StoppedError(f"stopped; the same command goes on with what {folder} has.", code) from None
    failed = [state for state in progress.states.values() if state.status == "failed"]
    print(f"{printable(str(folder / FILE))}: {progress.counts()}.")
    for state in failed:
        print(message(f"{state.trial.key} failed: {state.why}"))
    _compare(sweep, folder, progress)
    return 1 if failed else 0


def _compare(sweep: Sweep, folder: Path, progress: Progress) -> None:
    """Compare what is finished, and say what is the best on validation data."""
    if not (groups := compared(sweep, folder, progress)):
        return
    best, note, chosen = progress.best([group.name for group in groups])[0], "", ""
    if not math.isnan(score := progress.score(best)):
        chosen, note = best, f"Best on validation data, which alone may choose: {printable(best)}, {100 * score:.1f} %."
        print(note)
    asked = sweep.trials[0].plan.settings
    options = EvaluationOptions(download=asked.data.download or asked.model.download)
    compare(groups, folder / "comparison", options, show, note, chosen=chosen)
    print(f"written: {printable(str(folder / 'comparison' / 'comparison.html'))}")
