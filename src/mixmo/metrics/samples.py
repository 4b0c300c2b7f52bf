"""Metrics of single predictions: the columns from which scores, calibration, intervals and charts follow."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mixmo.metrics.checks import check_logits
from mixmo.metrics.chunks import in_chunks


class Samples(NamedTuple):
    """Metrics of each of N predictions, float64 except ``predicted``.

    Attributes:
        confidence: (N,) largest probabilities.
        predicted: (N,) class numbers; a tie goes to the lower one.
        right: (N,) 0 or 1.
        right_top5: (N,) 0 or 1, whether the class is among the five most probable ones, or there are no more.
        nll: (N,) -log p(target), in nats.
        brier: (N,) Σ_k (p_k - [k = target])².
    """

    confidence: Tensor
    predicted: Tensor
    right: Tensor
    right_top5: Tensor
    nll: Tensor
    brier: Tensor


def score_samples(log_probabilities: Tensor, targets: Tensor, probabilities: Tensor | None = None) -> Samples:
    """Return the metrics of each prediction from log-probabilities (N, K) in float64; nothing is checked.

    Example:
        >>> found = score_samples(torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([1]))
        >>> found.confidence.item(), found.right.item(), found.right_top5.item(), found.brier.item()
        (0.5, 0.0, 1.0, 0.5)
    """
    p = log_probabilities.exp() if probabilities is None else probabilities
    confidence, predicted = p.max(1)
    own = p.gather(1, targets[:, None])
    lower = torch.arange(p.shape[1], device=p.device) < targets[:, None]
    place = (p > own).sum(1) + ((p == own) & lower).sum(1)
    nll = -log_probabilities.gather(1, targets[:, None])[:, 0]
    brier = p.square().sum(1) - 2 * own[:, 0] + 1
    return Samples(confidence, predicted, (predicted == targets).double(), (place < 5).double(), nll, brier)


@torch.no_grad()
def per_sample(logits: Tensor, targets: Tensor) -> Samples:
    """Return the metrics of each prediction of one network, or of averaged logits, (N, K).

    Raises:
        InputError: if shapes do not fit, or a row has a value that is not finite or a target out of range.
    """
    targets = check_logits(logits[:, None], targets)
    parts = [score_samples(part.double().log_softmax(1), own) for part, own in in_chunks(logits, targets)]
    return Samples(*map(torch.cat, zip(*parts, strict=True)))
