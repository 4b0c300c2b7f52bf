"""Is a difference real? Bootstrap intervals and McNemar's test, over the images of one test set."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest, bootstrap

RESAMPLES = 2000


def paired_interval(difference: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of paired differences and its 95 % interval (percentile bootstrap over images).

    Args:
        difference: (N,) one difference for each image.

    Returns:
        The mean, and the lower and upper ends of the interval, in the unit of the differences.

    Example:
        >>> mean, low, high = paired_interval(np.tile([0.0, 1.0], 200))
        >>> mean, low < 0.5 < high
        (0.5, True)
    """
    if np.ptp(difference) == 0:
        return (float(difference[0]),) * 3
    found = bootstrap(
        (difference,), np.mean, n_resamples=RESAMPLES, batch=50, method="percentile", rng=np.random.default_rng(0)
    )
    return float(difference.mean()), float(found.confidence_interval.low), float(found.confidence_interval.high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Return the exact p-value of McNemar's test that two networks are right equally often.

    Args:
        first: (N,) 0 or 1, whether the first network is right.
        second: (N,) likewise for the second.

    Example:
        >>> round(mcnemar(np.array([1, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 0, 0])), 4)   # 5 to 0
        0.0625
    """
    only_first, only_second = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    total = only_first + only_second
    return float(binomtest(only_first, total).pvalue) if total else 1.0
