"""Temperature scaling (Guo et al. 2017), and weights of an ensemble's networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.stats import chi2
from torch import Tensor

from mixmo.metrics.checks import check_targets_for
from mixmo.metrics.chunks import in_chunks

BOUNDS = (0.01, 100.0)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the T > 0 that minimises the negative log-likelihood of softmax(logits / T).

    The objective is convex in 1 / T; log T is searched with T between 0.01 and 100. Do not fit T on the data that is
    then evaluated: use validation data, or one half of the test set for the other (:func:`two_fold`). If several
    temperatures are equally good, any of them may be returned; 1 if T has no effect because each sample's logits are
    equal.

    Args:
        logits: (N, K).
        targets: (N,) class numbers.

    Raises:
        InputError: if shapes do not match, there are no samples, a logit is not finite or a target is out of range.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 2)   # 4 / T = log 3
        3.64
    """
    targets = check_targets_for(logits[:, None], targets)
    if bool((logits == logits[:, :1]).all()):
        return 1.0
    low, high = map(math.log, BOUNDS)
    result = minimize_scalar(_nll_of(logits, targets), bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(result.x)


def _nll_of(logits: Tensor, targets: Tensor) -> Callable[[float], float]:
    """Return the negative log-likelihood, summed over samples, as a function of log T."""

    def nll(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        parts = in_chunks(logits, targets)
        return sum(F.cross_entropy(part.double() * scale, labels, reduction="sum").item() for part, labels in parts)

    return nll


def temperature_interval(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the 95 % profile-likelihood interval of the temperature, clipped to 0.01 and 100.

    It contains every T with 2 (NLL(T) - NLL(T̂)) ≤ χ²₁(0.95) = 3.84, where the NLL is summed over samples and T̂ is that
    of :func:`fit_temperature` (Wilks' theorem).

    Example:
        >>> logits = torch.tensor([[4.0, 0.0]] * 40)
        >>> targets = torch.tensor([0, 0, 0, 1] * 10)
        >>> [round(end, 2) for end in temperature_interval(logits, targets)]
        [2.14, 9.57]
        >>> [round(end, 2) for end in temperature_interval(logits[:4], targets[:4])]
        [0.97, 100.0]
    """
    best = math.log(fit_temperature(logits, targets))
    nll = _nll_of(logits, targets)
    limit = nll(best) + chi2.ppf(0.95, 1) / 2
    low, high = (
        bound if nll(math.log(bound)) <= limit else math.exp(brentq(lambda x: nll(x) - limit, math.log(bound), best))
        for bound in BOUNDS
    )
    return low, high


def describe_uncertainty(low: float, high: float) -> str:
    """Return a warning if a temperature's interval spans more than a factor of two; else an empty string."""
    if high <= 2 * low:
        return ""
    ends = f"{low:.2f} to {high:.2f}" if high < BOUNDS[1] else f"above {low:.2f}"
    return (
        f"The temperature is uncertain: its 95 % interval on the validation images is {ends}; more validation images "
        "would narrow it (data.validation)."
    )


def fit_weights(logits: Tensor, targets: Tensor) -> Tensor:
    """Return weights (M,) of mean 1 that minimise the NLL of averaged logits (N, M, K) at their best temperature.

    Asymmetric Duos (Zhou et al. 2025, arXiv 2505.18636) weight a large and a small network this way.
    """
    values, members = logits.double(), logits.shape[1]

    def loss(scales: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.tensor(scales, requires_grad=True)
        nll = F.cross_entropy(torch.einsum("nmk,m->nk", values, weights), targets)
        (gradient,) = torch.autograd.grad(nll, weights)
        return nll.item(), gradient.numpy()

    with torch.inference_mode(False), torch.enable_grad():
        scales = minimize(loss, np.full(members, 1 / members), jac=True, bounds=[(0, 100)] * members).x
    weights = torch.tensor(scales if scales.any() else np.ones(members))
    return (weights / weights.mean()).float()


def weight_members(logits: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Return the logits (N, M, K) of all networks' members, each network's multiplied by its weight, 1 by default.

    Members of networks with weight 0 are left out, so that they do not count as votes or as uncertainty; the others'
    logits are scaled so that the average over the members is the same.

    Example:
        >>> one, other = torch.ones(3, 2, 4), torch.rand(3, 1, 4)
        >>> weight_members([one, other], [1.5, 0.0]).mean(1).unique(), weight_members([one, other], [1.5, 0.0]).shape
        (tensor([1.]), torch.Size([3, 2, 4]))
    """
    weights = weights or [1.0] * len(logits)
    used = [(weight, part) for weight, part in zip(weights, logits, strict=True) if weight]
    share = sum(part.shape[1] for _, part in used) / sum(part.shape[1] for part in logits)
    return torch.cat([weight * share * part for weight, part in used], 1)


def two_fold(logits: Tensor, targets: Tensor) -> Tensor:
    """Scale each half of logits (N, K) by the temperature fitted on the other half, the paper's protocol.

    The halves are the even and the odd samples, which splits sets sorted by class evenly.
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    for half in (0, 1):
        scaled[half::2] /= fit_temperature(logits[1 - half :: 2], targets[1 - half :: 2])
    return scaled
