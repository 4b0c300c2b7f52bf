"""Confidence intervals in closed form, over test images or over seeds, and McNemar's test.

Only metrics whose intervals reach their nominal coverage have one; docs/evaluation.md describes how that was measured.
ECE and its variants (biased by binning), AUROC and d_re (based on few errors) have none over test images.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, t, ttest_ind, ttest_rel

from mixmo.evaluation.predictions import Predictions
from mixmo.metrics.diversity import disagreement
from mixmo.metrics.samples import Samples

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]

Z = 1.959964
LEAST = 20
"""Wrong predictions needed for an interval of one network's NLL or Brier score; with fewer, coverage is too low."""
BIASED = ("ece", "label_ece")
"""Metrics that binning biases by an amount that depends on the network: no interval covers a true difference."""
UNKNOWN: Interval = (math.nan, math.nan)


def image_intervals(predictions: Predictions) -> dict[str, Interval]:
    """Return 95 % intervals of ``accuracy``, ``nll``, ``brier`` and ``disagreement`` over test images.

    Shares have Wilson's intervals, means Student's. ``nll`` and ``brier`` need 20 wrong predictions, ``disagreement``
    needs several members. Multi-label predictions have none.
    """
    if predictions.multi_label:
        return {}
    samples, count = predictions.average(), len(predictions.targets)
    hits = float(samples.right.sum())
    intervals = {"accuracy": _share(hits, count)}
    if count - hits >= LEAST:
        intervals |= {key: _mean(getattr(samples, key).numpy()) for key in ("nll", "brier")}
    if predictions.logits.shape[1] > 1:
        intervals["disagreement"] = _share(float(disagreement(predictions.logits.argmax(2)).sum()), count)
    return intervals


def difference_intervals(own: Samples, other: Samples) -> dict[str, Interval]:
    """Return 95 % intervals of ``own`` minus ``other`` in ``accuracy``, ``nll`` and ``brier`` over test images.

    Accuracy has Bonett and Price's interval (2012), which is also valid if few images differ; the others have
    Student's, paired by image.
    """
    count, gain = len(own.right), (own.right - other.right).numpy()
    only_own, only_other = ((sign * gain > 0).sum() + 1 for sign in (1, -1))
    up, down = only_own / (count + 2), only_other / (count + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    means = {key: _mean((getattr(own, key) - getattr(other, key)).numpy()) for key in ("nll", "brier")}
    return {"accuracy": (float(up - down - half), float(up - down + half))} | means


def seeds_interval(own: Sequence[float], other: Sequence[float], paired: bool, folds: int = 1) -> Interval:
    """Return Student's 95 % interval of the difference of two methods' means over seeds; Welch's if not paired.

    Paired values are in the same order of seeds. NaN if values do not vary between seeds, which can happen by chance
    with few images or seeds. For n values over k > 1 folds the interval is wider by √(1 + n / (k - 1)), since any two
    folds share training images (Nadeau and Bengio 2003).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # from zero variance
        test = ttest_rel(own, other) if paired else ttest_ind(own, other, equal_var=False)
        low, high = test.confidence_interval(0.95)
    if not high - low > 1e-12:
        return UNKNOWN
    margin = (high - low) / 2 * (math.sqrt(1 + len(own) / (folds - 1)) - 1) if folds > 1 else 0.0
    return float(low - margin), float(high + margin)


def wilson(hits: npt.ArrayLike, counts: npt.ArrayLike) -> tuple[Array, Array]:
    """Return Wilson's 95 % intervals of shares."""
    n = np.asarray(counts, float)
    p = np.asarray(hits, float) / n
    middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * np.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return middle - half, middle + half


def _share(hits: float, count: int) -> Interval:
    low, high = wilson(hits, count)
    return max(0.0, float(low)), min(1.0, float(high))


def _mean(values: Array) -> Interval:
    if len(values) < 2:
        return UNKNOWN
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def mcnemar(own: Samples, other: Samples) -> float:
    """Return the exact p-value of McNemar's test that two networks are right equally often."""
    only_own, only_other = int((own.right > other.right).sum()), int((own.right < other.right).sum())
    total = only_own + only_other
    return float(binomtest(only_own, total).pvalue) if total else 1.0
