"""How differently members err. Every measure is the mean over the M (M - 1) / 2 pairs of members."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor


def error_ratio(predictions: Tensor, targets: Tensor) -> float:
    """Return d_re = (errors of exactly one of two members) / (errors of both) (Aksela 2003).

    The larger, the more diverse. A pair without a shared error has 2 * (share of all samples that exactly
    one of the two gets wrong), the convention of the paper's code.

    Args:
        predictions: (N, M) predicted class numbers, M >= 2.
        targets: (N,) class numbers.

    Example:
        >>> predictions = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]])
        >>> error_ratio(predictions, torch.tensor([0, 0, 0, 0]))   # one shared error, two single ones
        2.0
    """
    wrong = predictions != targets[:, None]

    def of_pair(i: int, j: int) -> Tensor:
        single = (wrong[:, i] ^ wrong[:, j]).double().mean()
        both = (wrong[:, i] & wrong[:, j]).double().mean()
        return torch.where(both > 0, single / both, 2 * single)

    return _mean_over_pairs(predictions, of_pair)


def disagreement(predictions: Tensor) -> float:
    """Return the share of samples for which two members predict different classes.

    Args:
        predictions: (N, M) predicted class numbers, M >= 2.

    Example:
        >>> disagreement(torch.tensor([[0, 0], [0, 1]]))
        0.5
    """
    return _mean_over_pairs(predictions, lambda i, j: (predictions[:, i] != predictions[:, j]).double().mean())


def _mean_over_pairs(predictions: Tensor, of_pair: Callable[[int, int], Tensor]) -> float:
    members = predictions.shape[1]
    if members < 2:
        raise ValueError(f"diversity is measured between members, but there is {members}.")
    return torch.stack([of_pair(i, j) for i, j in combinations(range(members), 2)]).mean().item()
