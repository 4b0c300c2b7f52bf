"""Conformal prediction sets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mixmo.errors import InputError
from mixmo.metrics.checks import check_probabilities, check_targets


def conformity(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return how likely the true classes were, (N,): what conformal thresholds are made of.

    Args:
        probabilities: (N, K).
        targets: (N,) class numbers.

    Example:
        >>> conformity(torch.tensor([[0.9, 0.1]]), torch.tensor([1]))
        tensor([0.1000], dtype=torch.float64)
    """
    p = check_probabilities(probabilities)
    targets = check_targets(targets, *p.shape)
    return p.gather(1, targets[:, None])[:, 0]


def set_threshold(likely: Tensor, coverage: float) -> float:
    """Return t such that the classes of probability t or more hold the true one in a share ``coverage`` of new images.

    Of N validation images the k-th smallest probability of the true class, k = ⌊(N + 1) (1 - coverage)⌋ (Sadinle et al.
    2019); 0, so that every class is in the set, where N is too small for that coverage. The share holds on average over
    draws of validation images and new ones of the same kind.

    Args:
        likely: (N,), of :func:`conformity` on validation images.
        coverage: Between 0 and 1.

    Raises:
        InputError: if the coverage is no such share.

    Example:
        >>> set_threshold(torch.arange(1, 100).double() / 100, 0.9), set_threshold(torch.tensor([0.5]), 0.9)
        (0.1, 0.0)
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage is {coverage}; it is a share between 0 and 1.")
    rank = math.floor((len(likely) + 1) * (1 - coverage) + 1e-9)
    return float(likely.sort().values[rank - 1]) if rank else 0.0


def prediction_sets(probabilities: Tensor, threshold: float) -> Tensor:
    """Return which classes are in each set, (N, K): those of at least that probability, and always the likeliest.

    Example:
        >>> prediction_sets(torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25]]), 0.5)
        tensor([[ True, False, False],
                [ True, False, False]])
    """
    sets = probabilities >= threshold
    return sets.scatter(1, probabilities.argmax(1, keepdim=True), True)


class PredictionSets(Metric):
    """How often conformal sets hold the true class, and how large they are.

    * ``set_coverage``: share of the images whose set holds the true class.
    * ``set_size``: mean number of classes in a set.

    Args:
        threshold: Of :func:`set_threshold`, from other images.

    Example:
        >>> sets = PredictionSets(0.3)
        >>> sets.update(torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]]), torch.tensor([1, 2]))
        >>> {name: value.item() for name, value in sets.compute().items()}
        {'set_coverage': 0.5, 'set_size': 2.0}
    """

    full_state_update = False
    covered: Tensor
    size: Tensor
    count: Tensor

    def __init__(self, threshold: float, **options: Any) -> None:
        super().__init__(**options)
        self.threshold = threshold
        for name in ("covered", "size", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add a batch of probabilities (B, K) and class numbers (B,)."""
        p = check_probabilities(probabilities)
        targets = check_targets(targets, *p.shape)
        sets = prediction_sets(p, self.threshold)
        self.covered += sets.gather(1, targets[:, None]).sum()
        self.size += sets.sum()
        self.count += len(p)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all batches; NaN if there were none."""
        return {"set_coverage": self.covered / self.count, "set_size": self.size / self.count}
