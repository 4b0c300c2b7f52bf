"""McNemar's test."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Return the exact p-value of McNemar's test that two networks are right equally often.

    Args:
        first: (N,) 0 or 1, whether the first network is right.
        second: (N,) the same for the second.

    Example:
        >>> round(mcnemar(np.array([1, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 0, 0])), 4)   # 5 to 0
        0.0625
    """
    only_first, only_second = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    total = only_first + only_second
    return float(binomtest(only_first, total).pvalue) if total else 1.0
