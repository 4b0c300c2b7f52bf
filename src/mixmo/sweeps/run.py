"""Run a sweep: its trials, those of further seeds, and the comparison of what is finished."""

from __future__ import annotations

from pathlib import Path

from mixmo.errors import InputError
from mixmo.evaluation.calibration import calibrate_run
from mixmo.evaluation.comparison import Seeds
from mixmo.evaluation.records import read_history
from mixmo.runs import RunFolder
from mixmo.sweeps.grid import Sweep, Trial
from mixmo.sweeps.on_ray import Resources, installed, run_on_ray
from mixmo.sweeps.progress import Progress, Status, check_folder, stopped_epoch
from mixmo.sweeps.trial import check_same
from mixmo.sweeps.turns import failure, run_in_turn

ANY = Resources()
MOST_COMPARED = 5
"""Configurations of a random search that are compared on the test set: the best on validation data."""


def run_sweep(
    sweep: Sweep, folder: Path, ray: bool | None = None, address: str | None = None, resources: Resources = ANY
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
        InputError: if a trial's folder holds a run of other settings, the folder is in use or is not a sweep's, or Ray
            is asked for and is not there.
        StoppedError: if a signal asked to stop.
    """
    if address and ray is False:
        raise InputError(f"--address {address} names a Ray cluster, and --ray is false; leave one of them out.")
    on_ray = address is not None or (installed() if ray is None else ray)
    if on_ray and not installed():
        raise InputError("Ray Tune is not installed; `pip install 'mixmo[ray]'` installs it.")
    check_folder(folder)
    for trial in sweep.trials:
        if (run := RunFolder(folder / trial.key)).config_file.is_file():
            check_same(trial.plan, run)

    def train(trials: list[Trial]) -> None:
        waiting = [trial for trial in trials if progress.states[trial.key].status == "waiting"]
        if waiting and on_ray:
            run_on_ray(waiting, folder, progress, resources, address)
        elif waiting:
            run_in_turn(waiting, folder, progress, resources.cpus)

    with RunFolder(folder).locked():
        progress = Progress(sweep, folder)
        for trial in sweep.trials:
            _note_ended(trial, folder, progress)
        with progress.shown():
            train(sweep.race)
            finished = {state.trial.name for state in progress.states.values() if state.status == "finished"}
            for trial in sweep.rest:
                if sweep.race and trial.name not in finished:
                    progress.set(trial.key, "left out")
            train(sweep.rest)
    return progress


def _note_ended(trial: Trial, folder: Path, progress: Progress) -> None:
    """Note what an earlier call has trained, to its end or not, stopped early, or left damaged."""
    run = RunFolder(folder / trial.key)
    if not run.config_file.is_file():
        return
    try:
        epochs = run.finished_epochs()
        rows = read_history(run)[:epochs]
        status: Status = "waiting"
        if epochs >= trial.epochs:
            calibrate_run(run, trial.plan.settings)
            status = "finished"
        elif trial.key in progress.raced and stopped_epoch(run) == epochs:
            status = "stopped early"
        progress.note(trial.key, status, rows)
    except Exception as error:  # the others are trained nevertheless
        progress.note(trial.key, "failed", why=failure(error))


def compared(sweep: Sweep, folder: Path, progress: Progress) -> list[Seeds]:
    """Return the configurations to compare on the test set: all of a grid, the best on validation of a random search.

    Args:
        sweep: The sweep.
        folder: Where its trials are.
        progress: What became of them; only what is finished with every seed is compared.
    """
    names = progress.finished()
    chosen = progress.best(names)[:MOST_COMPARED] if sweep.random else names
    return [Seeds(name, [folder / each.key for each in sweep.trials if each.name == name]) for name in chosen]
