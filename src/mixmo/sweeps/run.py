"""Run a sweep: its trials, those of further seeds, and the comparison of what is finished."""

from __future__ import annotations

from pathlib import Path

from mixmo.errors import InputError
from mixmo.evaluation.calibration import calibrate_run
from mixmo.evaluation.records import read_history
from mixmo.files import make_folder
from mixmo.runs import Run
from mixmo.sweeps.grid import Sweep, Trial
from mixmo.sweeps.on_ray import Resources, installed, run_on_ray
from mixmo.sweeps.progress import Progress
from mixmo.sweeps.settings import Asha
from mixmo.sweeps.trial import check_same
from mixmo.sweeps.turns import run_in_turn

ANY = Resources()
MOST_COMPARED = 5
"""Configurations of a random search that are compared on the test set: the best on validation data."""


def run_sweep(
    sweep: Sweep,
    folder: Path,
    ray: bool | None = None,
    address: str | None = None,
    resources: Resources = ANY,
) -> Progress:
    """Train the trials that are not trained yet, and go on with those that were stopped.

    With ``asha`` the first seed of every configuration is raced; those that get to the end are trained with the other
    seeds, to their end.

    Args:
        sweep: What to train (:func:`mixmo.sweeps.grid.load_sweep`).
        folder: Where, ``NAME/seed-S`` for each trial; trials that it has are not trained again.
        ray: Whether Ray trains them; ``None`` for where it is installed. Without it they come one after the other.
        address: Of a Ray cluster; ``None`` for this machine alone.
        resources: What each trial takes of a machine.

    Returns:
        What became of each trial; ``trials.csv`` in the folder says the same.

    Raises:
        InputError: if a trial's folder holds a run of other settings, or Ray is asked for and is not there.
        StoppedError: if a signal asked to stop.
    """
    if (ray or address) and not installed():
        raise InputError("Ray Tune is not installed; `pip install 'mixmo[ray]'` installs it.")
    for trial in sweep.trials:
        if (run := Run(folder / trial.key)).config_file.is_file():
            check_same(trial.plan, run)
    make_folder(folder)
    progress = Progress(sweep, folder)
    on_ray = address is not None or (installed() if ray is None else ray)

    def train(trials: list[Trial], asha: Asha | None) -> None:
        for trial in trials:
            _note_ended(trial, folder, progress)
        left = [trial for trial in trials if progress.states[trial.key].status == "waiting"]
        together = trials if left and asha else left  # what has ended still tells which of the others are good
        if together and on_ray:
            run_on_ray(together, asha, folder, progress, resources, address)
        elif together:
            run_in_turn(together, asha, folder, progress, resources.cpus)

    with progress.shown():
        try:
            train(sweep.race, sweep.asha)
            finished = {state.trial.name for state in progress.states.values() if state.status == "finished"}
            for trial in sweep.rest:
                if sweep.race and trial.name not in finished:
                    progress.set(trial.key, "left out")
            train([trial for trial in sweep.rest if progress.states[trial.key].status == "waiting"], None)
        finally:
            progress.write()
    return progress


def _note_ended(trial: Trial, folder: Path, progress: Progress) -> None:
    """Note what an earlier call has trained to its end, or stopped early."""
    run = Run(folder / trial.key)
    epochs = run.finished_epochs() if run.config_file.is_file() else 0
    if epochs < trial.epochs and trial.key not in progress.stopped:
        return
    for row in read_history(run)[:epochs]:
        progress.epoch(trial.key, row)
    if epochs < trial.epochs:
        progress.set(trial.key, "stopped early")
        return
    calibrate_run(run, trial.plan.settings)
    progress.set(trial.key, "finished")


def compared(sweep: Sweep, progress: Progress) -> list[str]:
    """Return the configurations to compare on the test set: all of a grid, the best on validation of a random search.

    Args:
        sweep: The sweep.
        progress: What became of its trials; only what is finished with every seed is compared.
    """
    names = progress.finished()
    return progress.best(names)[:MOST_COMPARED] if sweep.random else names
