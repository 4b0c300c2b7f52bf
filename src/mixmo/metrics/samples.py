"""Per-sample metrics, from which scores, calibration, intervals and charts are computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mixmo.metrics.checks import check_targets_for
from mixmo.metrics.chunks import in_chunks


class Samples(NamedTuple):
    """Metrics of N predictions, float64 except ``predicted``.

    Attributes:
        confidence: (N,) largest probabilities.
        predicted: (N,) class numbers; ties go to the lower one.
        right: (N,) 0 or 1.
        right_top5: (N,) 0 or 1, whether the target is among the five most probable classes.
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
    """Return per-sample metrics from float64 log-probabilities (N, K), without checks.

    Example:
        >>> samples = score_samples(torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([1]))
        >>> samples.confidence.item(), samples.right.item(), samples.right_top5.item(), samples.brier.item()
        (0.5, 0.0, 1.0, 0.5)
    """
    p = log_probabilities.exp() if probabilities is None else probabilities
    confidence, predicted = p.max(1)
    true = p.gather(1, targets[:, None])
    lower = torch.arange(p.shape[1], device=p.device) < targets[:, None]
    rank = (p > true).sum(1) + ((p == true) & lower).sum(1)
    nll = -log_probabilities.gather(1, targets[:, None])[:, 0]
    brier = p.square().sum(1) - 2 * true[:, 0] + 1
    return Samples(confidence, predicted, (predicted == targets).double(), (rank < 5).double(), nll, brier)


@torch.no_grad()
def per_sample(logits: Tensor, targets: Tensor) -> Samples:
    """Return per-sample metrics of the logits (N, K) of one network or an average.

    Raises:
        InputError: if shapes do not match, a logit is not finite or a target is out of range.
    """
    targets = check_targets_for(logits[:, None], targets)
    parts = [score_samples(part.double().log_softmax(1), labels) for part, labels in in_chunks(logits, targets)]
    return Samples(*map(torch.cat, zip(*parts, strict=True)))
