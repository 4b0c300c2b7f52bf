"""Conformal prediction sets: marginal, class-wise and adaptive."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from mixmo.errors import InputError
from mixmo.metrics.checks import check_probabilities, check_targets

Sets = Literal["marginal", "classwise", "aps", "raps"]
SETS: tuple[Sets, ...] = get_args(Sets)
"""Kinds of sets (:func:`score_classes`)."""

PENALTY = 0.1
"""λ of RAPS, the penalty per rank below the likeliest class."""


def score_classes(probabilities: Tensor, sets: Sets = "marginal") -> Tensor:
    """Return the conformity score of each class, (N, K) float64; a set is the classes with scores above a threshold.

    * ``marginal``, ``classwise``: the class's probability p_k (Sadinle et al. 2019). Classwise sets have one threshold
      per class: Mondrian conformal prediction (Vovk 2012).
    * ``aps``: 1 - Σ p_j over the class and all likelier ones (Romano et al. 2020).
    * ``raps``: the same minus λ = 0.1 per rank below the likeliest class (Angelopoulos et al. 2021; k_reg = 1).

    APS and RAPS omit the papers' random term: sets are deterministic and slightly larger.

    Example:
        >>> score_classes(torch.tensor([[0.25, 0.5, 0.25]]), "aps")
        tensor([[0.2500, 0.5000, 0.0000]], dtype=torch.float64)
    """
    p = check_probabilities(probabilities)
    if sets in ("marginal", "classwise"):
        return p
    ordered, order = p.sort(dim=1, descending=True, stable=True)
    less_likely = pad(ordered.flip(1).cumsum(1).flip(1)[:, 1:], (0, 1))  # more precise than 1 - cumsum
    if sets == "raps":
        less_likely = less_likely - PENALTY * torch.arange(p.shape[1], device=p.device)
    return torch.empty_like(p).scatter_(1, order, less_likely)


def conformity(probabilities: Tensor, targets: Tensor, sets: Sets = "marginal") -> Tensor:
    """Return the scores (N,) of the true classes, from which :func:`set_threshold` is computed."""
    scores = score_classes(probabilities, sets)
    targets = check_targets(targets, *scores.shape)
    return scores.gather(1, targets[:, None])[:, 0]


def set_threshold(scores: Tensor, coverage: float) -> float:
    """Return the threshold at which sets contain the true class of a share ``coverage`` of new images.

    This is the k-th smallest true-class score of N validation images, k = ⌊(N + 1) (1 - coverage)⌋ (Sadinle et al.
    2019), or minus infinity, which puts every class into the set, if N is too small. The coverage holds on average over
    draws of validation images and new ones of the same kind. Scores of one class give that class's threshold.

    Example:
        >>> set_threshold(torch.arange(1, 100).double() / 100, 0.9), set_threshold(torch.tensor([0.5]), 0.9)
        (0.1, -inf)
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage is {coverage}; it is a share between 0 and 1.")
    rank = math.floor((len(scores) + 1) * (1 - coverage) + 1e-9)
    return float(scores.sort().values[rank - 1]) if rank else -math.inf


def prediction_sets(probabilities: Tensor, threshold: float | Tensor, sets: Sets = "marginal") -> Tensor:
    """Return which classes are in each set, (N, K): those with scores of at least ``threshold``, and the likeliest.

    Classwise sets take thresholds (K,). Thresholds (T, 1, K) give T sets per image, (T, N, K).

    Example:
        >>> prediction_sets(torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25]]), 0.5)
        tensor([[ True, False, False],
                [ True, False, False]])
    """
    likeliest = torch.zeros_like(probabilities, dtype=torch.bool)
    likeliest.scatter_(1, probabilities.argmax(1, keepdim=True), True)
    return likeliest | (score_classes(probabilities, sets) >= threshold)


def measure_sets(sets: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the coverage and size of prediction sets (N, K).

    ``set_coverage`` is the share of images whose set contains the true class, ``set_coverage_class`` the lowest
    coverage of any class, and ``set_size`` the mean number of classes in a set.

    Example:
        >>> sets = prediction_sets(torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]]), 0.3)
        >>> measure_sets(sets, torch.tensor([1, 2]))
        {'set_coverage': 0.5, 'set_coverage_class': 0.0, 'set_size': 2.0}
    """
    covered = torch.gather(sets, 1, targets[:, None])[:, 0].double()
    by_class = torch.bincount(targets, covered) / torch.bincount(targets)  # NaN for classes without images
    return {
        "set_coverage": covered.mean().item(),
        "set_coverage_class": by_class[~by_class.isnan()].min().item(),
        "set_size": sets.sum(1).double().mean().item(),
    }
