"""Accuracy and proper scores of predicted probabilities."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def accuracy(scores: Tensor, targets: Tensor, top: int = 1) -> float:
    """Return the share of samples whose class is among the ``top`` highest scores.

    Args:
        scores: (N, K) logits or probabilities.
        targets: (N,) class numbers.
        top: 1 for top-1, 5 for top-5; with fewer classes all of them count.

    Returns:
        A share in [0, 1].

    Example:
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        0.5
    """
    found = scores.topk(min(top, scores.shape[1]), 1).indices == targets[:, None]
    return found.any(1).double().mean().item()


def negative_log_likelihood(log_probabilities: Tensor, targets: Tensor) -> float:
    """Return the mean of -log p(target), in nats.

    Args:
        log_probabilities: (N, K), log-softmax of logits or log of averaged probabilities.
        targets: (N,) class numbers.

    Example:
        >>> negative_log_likelihood(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0]))
        0.693...
    """
    return F.nll_loss(log_probabilities.double(), targets).item()


def brier_score(probabilities: Tensor, targets: Tensor) -> float:
    """Return the mean of Σ_k (p_k - [k = target])², summed over classes, in [0, 2].

    The reference implementation of the paper divides this by K.

    Args:
        probabilities: (N, K).
        targets: (N,) class numbers.

    Example:
        >>> brier_score(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        0.5
    """
    truth = F.one_hot(targets, probabilities.shape[1])
    return (probabilities.double() - truth).square().sum(1).mean().item()


def check_logits(logits: Tensor, targets: Tensor) -> None:
    """Refuse logits (N, M, K) and targets (N,) that do not fit or are not finite.

    Raises:
        ValueError: naming the first row at fault.

    Example:
        >>> check_logits(torch.zeros(2, 1, 3), torch.tensor([0, 3]))
        Traceback (most recent call last):
        ValueError: target 3 in row 1 is out of range; 3 classes are numbered 0 to 2.
    """
    if logits.dim() != 3 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and targets of shape {tuple(targets.shape)} do not fit; "
            "they are (N, M, K) and (N,)."
        )
    if not logits.numel():
        raise ValueError(f"logits of shape {tuple(logits.shape)} are empty; there is nothing to evaluate.")
    bad = (~logits.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        raise ValueError(f"logits in row {int(bad[0])} are not finite ({len(bad)} such rows of {len(logits)}).")
    out = ((targets < 0) | (targets >= logits.shape[2])).nonzero()
    if len(out):
        row, classes = int(out[0]), logits.shape[2]
        raise ValueError(
            f"target {int(targets[row])} in row {row} is out of range; "
            f"{classes} classes are numbered 0 to {classes - 1}."
        )


def ensemble_log_probabilities(logits: Tensor) -> dict[str, Tensor]:
    """Return log-probabilities (N, K) of the two ways to average members, in float64.

    ``logit``: softmax of the mean logits (the paper's). ``probability``: mean of the members' softmaxes.

    Args:
        logits: (N, M, K).

    Example:
        >>> both = ensemble_log_probabilities(torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]))
        >>> [round(way.exp()[0, 0].item(), 3) for way in both.values()]
        [0.731, 0.69]
    """
    logits = logits.double()
    members = logits.log_softmax(2)
    averaged = torch.logsumexp(members, 1) - math.log(logits.shape[1])
    return {"logit": logits.mean(1).log_softmax(1), "probability": averaged}
