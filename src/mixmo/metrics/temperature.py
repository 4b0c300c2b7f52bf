"""Temperature scaling (Guo et al. 2017), and weights of an ensemble's networks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.stats import chi2
from torch import Tensor

from mixmo.metrics.checks import check_logits
from mixmo.metrics.chunks import in_chunks

BOUNDS = (0.01, 100.0)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the T > 0 that minimises the negative log-likelihood of softmax(logits / T).

    The objective is convex in 1 / T; the minimum is searched between 0.01 and 100, in log T. Never fit it on the
    data that is then evaluated: take validation data, or one half of the test set for the other (:func:`two_fold`).
    Where several temperatures are equally good, any of them may be returned; it is 1 where no temperature changes
    anything, because the logits of each sample are equal.

    Args:
        logits: (N, K).
        targets: (N,) class numbers.

    Raises:
        InputError: if shapes do not match, there are no samples, or a row has a value that is not finite or a target
            out of range.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 2)   # 4 / T = log 3
        3.64
    """
    targets = check_logits(logits[:, None], targets)
    if bool((logits == logits[:, :1]).all()):
        return 1.0
    low, high = map(math.log, BOUNDS)
    found = minimize_scalar(_loss_of(logits, targets), bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


def _loss_of(logits: Tensor, targets: Tensor) -> Callable[[float], float]:
    """Return the negative log-likelihood, summed over samples, as a function of log T."""

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        parts = in_chunks(logits, targets)
        return sum(F.cross_entropy(part.double() * scale, own, reduction="sum").item() for part, own in parts)

    return loss


def temperature_interval(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the 95 % profile-likelihood interval of the temperature, cut at 0.01 and 100.

    It holds every T with 2 (NLL(T) - NLL(T̂)) ≤ χ²₁(0.95) = 3.84, NLL summed over the samples and T̂ that of
    :func:`fit_temperature` (Wilks' theorem).

    Example:
        >>> logits = torch.tensor([[4.0, 0.0]] * 40)
        >>> targets = torch.tensor([0, 0, 0, 1] * 10)
        >>> [round(end, 2) for end in temperature_interval(logits, targets)]
        [2.14, 9.57]
        >>> [round(end, 2) for end in temperature_interval(logits[:4], targets[:4])]
        [0.97, 100.0]
    """
    best = math.log(fit_temperature(logits, targets))
    loss = _loss_of(logits, targets)
    most = loss(best) + chi2.ppf(0.95, 1) / 2
    low, high = (
        bound if loss(math.log(bound)) <= most else math.exp(brentq(lambda x: loss(x) - most, math.log(bound), best))
        for bound in BOUNDS
    )
    return low, high


def describe_doubt(low: float, high: float) -> str:
    """Return a warning if a temperature's interval spans more than a factor of two, else an empty string."""
    if high <= 2 * low:
        return ""
    return (
        f"The temperature is uncertain: these validation images put it between {low:.2f} and {high:.2f} (95 % "
        "interval); more of them narrow it (data.validation)."
    )


def fit_weights(logits: Tensor, targets: Tensor) -> Tensor:
    """Return weights (M,) of mean 1 for which averaged logits (N, M, K) have the least NLL at their best temperature.

    Asymmetric Duos (Zhou et al. 2025, arXiv 2505.18636) weight a large and a small network this way.
    """
    values, members = logits.double(), logits.shape[1]

    def loss(scales: np.ndarray) -> tuple[float, np.ndarray]:
        given = torch.tensor(scales, requires_grad=True)
        nll = F.cross_entropy(torch.einsum("nmk,m->nk", values, given), targets)
        (gradient,) = torch.autograd.grad(nll, given)
        return nll.item(), gradient.numpy()

    with torch.inference_mode(False), torch.enable_grad():
        scales = minimize(loss, np.full(members, 1 / members), jac=True, bounds=[(0, 100)] * members).x
    found = torch.tensor(scales if scales.any() else np.ones(members))
    return (found / found.mean()).float()


def two_fold(logits: Tensor, targets: Tensor) -> Tensor:
    """Return logits (N, K) in which each half is scaled by the temperature of the other: the paper's protocol.

    The halves are the even and the odd samples, so that sets sorted by class are divided evenly.
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    for half in (0, 1):
        scaled[half::2] /= fit_temperature(logits[1 - half :: 2], targets[1 - half :: 2])
    return scaled
