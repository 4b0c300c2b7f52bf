"""Conformal prediction sets."""

from __future__ import annotations

import math

import torch
from torch import Tensor

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


def measure_sets(probabilities: Tensor, targets: Tensor, threshold: float) -> dict[str, float]:
    """Return how often prediction sets hold the true class, and how large they are.

    Args:
        probabilities: (N, K).
        targets: (N,) class numbers.
        threshold: Of :func:`set_threshold`, from other images.

    Returns:
        ``set_coverage``, the share of the images whose set holds the true class, and ``set_size``, the mean number of
        classes in a set.

    Example:
        >>> measure_sets(torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]]), torch.tensor([1, 2]), 0.3)
        {'set_coverage': 0.5, 'set_size': 2.0}
    """
    sets = prediction_sets(probabilities, threshold)
    covered = torch.gather(sets, 1, targets[:, None])
    return {"set_coverage": covered.double().mean().item(), "set_size": sets.sum(1).double().mean().item()}
