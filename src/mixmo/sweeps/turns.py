"""The trials of a sweep one after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mixmo.errors import InputError, StoppedError, reason, sentence
from mixmo.sweeps.grid import Trial
from mixmo.sweeps.progress import Progress
from mixmo.sweeps.trial import Row, train_trial


def run_in_turn(trials: Sequence[Trial], folder: Path, progress: Progress, cpus: int | None) -> None:
    """Train trials one after the other.

    Args:
        trials: What to train.
        folder: The sweep's.
        progress: Takes what becomes of them, and says which go on.
        cpus: Threads; ``None`` for all.

    Raises:
        StoppedError: if a signal asks to stop.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(cpus or threads)
        for trial in trials:
            _train(trial, folder, progress)
    finally:
        torch.set_num_threads(threads)


def _train(trial: Trial, folder: Path, progress: Progress) -> None:
    def report(row: Row) -> bool:
        return progress.epoch(trial.key, row)

    progress.set(trial.key, "training")
    try:
        if train_trial(trial.recipe, trial.overrides, folder / trial.key, report):
            progress.set(trial.key, "finished")
    except (KeyboardInterrupt, SystemExit, StoppedError):
        raise
    except Exception as error:
        progress.set(trial.key, "failed", failure(error))


def failure(error: Exception) -> str:
    """Return why a trial failed, in a sentence.

    Example:
        >>> failure(RuntimeError("no device"))
        'RuntimeError: no device.'
    """
    return sentence(error) if isinstance(error, InputError) else f"{type(error).__name__}: {reason(error)}."
