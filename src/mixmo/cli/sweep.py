"""``mixmo sweep``: many runs from one file, one after the other or on Ray, and the comparison of them."""

from __future__ import annotations

import math
from pathlib import Path

from jsonargparse import ArgumentParser

from mixmo.cli.compare import show
from mixmo.config.plan import known_settings, pairs, parse
from mixmo.errors import InputError, StoppedError
from mixmo.evaluation.results import EvaluationOptions
from mixmo.names import message, printable
from mixmo.reporting.comparison_page import compare
from mixmo.sweeps.grid import Sweep, load_sweep
from mixmo.sweeps.on_ray import Resources
from mixmo.sweeps.progress import FILE, Progress
from mixmo.sweeps.run import compared, run_sweep

OWN = {"out": str, "ray": bool | None, "address": str, "cpus": int, "gpus": float}
"""Options of the command; all others are settings of every trial."""

ABOUT = "Train many runs from one file (a grid, random search, seeds), and compare them."


def run(words: list[str]) -> int:
    """``mixmo sweep FILE [--out FOLDER] [--address ADDRESS] [--key value …]``; 1 if some trials failed."""
    if {"-h", "--help"} & set(words):
        _parser().print_help()
        return 0
    if not words or words[0].startswith("-"):
        raise InputError("sweep needs a YAML file, a recipe with a section `sweep`; docs/sweeps.md shows one.")
    file, given = Path(words[0]), pairs(words[1:], {**known_settings(), "run": str, **OWN}, "sweep")
    if empty := [name for name, text in given if name in OWN and not text]:
        raise InputError(f"--{empty[0]} names nothing.")
    chosen = parse(_parser(), [f"--{name}={text}" for name, text in given if name in OWN])
    sweep = load_sweep(file, [f"--{name}={text}" for name, text in given if name not in OWN])
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


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="mixmo sweep FILE", exit_on_error=False, description=ABOUT)
    parser.add_argument("--out", type=str | None, default=None, help="the folder of the trials; runs/NAME by default")
    parser.add_argument(
        "--ray", nargs="?", const=True, type=bool | None, default=None,
        help="train on Ray; by default where it is installed",
    )  # fmt: skip
    parser.add_argument("--address", type=str | None, default=None, help="of a Ray cluster, auto to look for one")
    parser.add_argument("--cpus", type=int | None, default=None, help="cores of each trial")
    parser.add_argument("--gpus", type=float | None, default=None, help="GPUs of each trial, 0.5 for two on one")
    return parser
