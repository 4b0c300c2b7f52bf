"""Temperature scaling (Guo et al. 2017)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from mixmo.metrics.checks import check_logits
from mixmo.metrics.chunks import in_chunks

BOUNDS = (0.01, 100.0)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the T > 0 that minimises the negative log-likelihood of softmax(logits / T).

    The objective is convex in 1 / T; the minimum is looked for between 0.01 and 100, in log T. Never fit it on the
    data that is then evaluated: take validation data, or one half of the test set for the other (:func:`two_fold`).
    Where several temperatures are equally good, any of them may be returned; it is 1 where no temperature changes
    anything, because the logits of each sample are equal.

    Args:
        logits: (N, K).
        targets: (N,) class numbers.

    Raises:
        InputError: if shapes do not fit, there are none, or a row has a value that is not finite or a target out of
            range.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 2)   # 4 / T = log 3
        3.64
    """
    targets = check_logits(logits[:, None], targets)
    if bool((logits == logits[:, :1]).all()):
        return 1.0

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        parts = in_chunks(logits, targets)
        return sum(F.cross_entropy(part.double() * scale, own, reduction="sum").item() for part, own in parts)

    low, high = (math.log(bound) for bound in BOUNDS)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


def two_fold(logits: Tensor, targets: Tensor) -> Tensor:
    """Return logits (N, K) in which each half is scaled by the temperature of the other: the paper's protocol.

    Samples of even and of odd number are the halves, so that sets sorted by class are cut fairly.

    Args:
        logits: (N, K).
        targets: (N,) class numbers.

    Raises:
        InputError: as :func:`fit_temperature` for a half; there have to be two samples.

    Example:
        >>> two_fold(torch.tensor([[2.0, 0.0]] * 4), torch.tensor([0, 0, 1, 1])).shape
        torch.Size([4, 2])
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    for half in (0, 1):
        scaled[half::2] /= fit_temperature(logits[1 - half :: 2], targets[1 - half :: 2])
    return scaled
