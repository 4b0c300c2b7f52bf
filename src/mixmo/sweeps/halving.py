"""Asynchronous successive halving (ASHA): which trials of a race go on, by their accuracy on validation data."""

from __future__ import annotations

import math

import numpy as np

from mixmo.sweeps.settings import Asha


class Halving:
    """The rule of ASHA (Li et al. 2020, arXiv 1810.05934), as Ray Tune has it.

    After g, g·r, g·r² … epochs a trial goes on unless its score is below the (1 − 1/r) quantile of those that came
    there before it.

    Args:
        asha: g and r.
        epochs: The epochs of a whole training, after which nothing is decided.

    Example:
        >>> halving = Halving(Asha(grace_epochs=1, reduction=2), epochs=4)
        >>> [halving.goes_on(trial, 1, score) for trial, score in (("a", 0.5), ("b", 0.4), ("c", 0.6))]
        [True, False, True]
    """

    def __init__(self, asha: Asha, epochs: int) -> None:
        self.quantile = 1 - 1 / asha.reduction
        rungs = math.ceil(math.log(epochs / asha.grace_epochs, asha.reduction)) + 1
        found = (math.ceil(asha.grace_epochs * asha.reduction**rung) for rung in range(rungs))
        self.scores: dict[int, dict[str, float]] = {epoch: {} for epoch in found if epoch < epochs}

    def goes_on(self, trial: str, epoch: int, score: float) -> bool:
        """Return whether a trial goes on; what it was told once for an epoch stays so for a trial that went on."""
        before = self.scores.get(epoch)
        if before is None or trial in before:
            return True
        good = not before or score >= float(np.quantile(list(before.values()), self.quantile))
        before[trial] = score
        return good
