"""The trials of a sweep one after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mixmo.errors import InputError, StoppedError, reason, sentence
from mixmo.sweeps.grid import Trial
from mixmo.sweeps.progress import SCORE, Progress
from mixmo.sweeps.settings import Asha
from mixmo.sweeps.trial import Row, train_trial


class Halving:
    """Ray's rule of ASHA for trials that come one after the other.

    After g·rᵏ epochs a trial goes on unless its score is below the (1 − 1/r) quantile of those that came there before.

    Args:
        asha: g and r.
        epochs: The epochs of a whole training, after which nothing is decided.

    Example:
        >>> halving = Halving(Asha(grace_epochs=1, reduction=2), epochs=4)
        >>> [halving.goes_on(1, score) for score in (0.5, 0.4, 0.6)]
        [True, False, True]
    """

    def __init__(self, asha: Asha, epochs: int) -> None:
        self.keep = 1 / asha.reduction
        self.scores: dict[int, list[float]] = {}
        rung = float(asha.grace_epochs)
        while rung < epochs:
            self.scores[int(np.ceil(rung))] = []
            rung *= asha.reduction

    def goes_on(self, epoch: int, score: float) -> bool:
        """Return whether the trial that has come to an epoch goes on; called once for each epoch of each trial."""
        if (before := self.scores.get(epoch)) is None:
            return True
        good = not before or score >= float(np.percentile(before, 100 * (1 - self.keep)))
        before.append(score)
        return good


def run_in_turn(trials: Sequence[Trial], asha: Asha | None, folder: Path, progress: Progress, cpus: int | None) -> None:
    """Train trials one after the other.

    Args:
        trials: What to train.
        asha: When to stop one early.
        folder: The sweep's.
        progress: Takes what becomes of them.
        cpus: Threads; ``None`` for all.

    Raises:
        StoppedError: if a signal asks to stop.
    """
    halving = Halving(asha, trials[0].epochs) if asha else None
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(cpus or threads)
        for trial in trials:
            _train(trial, halving, folder, progress)
    finally:
        torch.set_num_threads(threads)


def _train(trial: Trial, halving: Halving | None, folder: Path, progress: Progress) -> None:
    def report(row: Row) -> bool:
        progress.epoch(trial.key, row)
        return halving is None or halving.goes_on(int(row["epoch"]), row[SCORE])

    progress.set(trial.key, "training")
    try:
        stopped = trial.key in progress.stopped
        ended = train_trial(trial.recipe, trial.words, folder / trial.key, report, stopped=stopped)
    except (KeyboardInterrupt, SystemExit, StoppedError):
        raise
    except Exception as error:
        progress.set(trial.key, "failed", failure(error))
        return
    progress.set(trial.key, "finished" if ended else "stopped early")


def failure(error: Exception) -> str:
    """Return why a trial failed, in a sentence.

    Example:
        >>> failure(RuntimeError("no device"))
        'RuntimeError: no device.'
    """
    return sentence(error) if isinstance(error, InputError) else f"{type(error).__name__}: {reason(error)}."
