"""How sure a metric is: bootstrap over test images, paired between networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mixmo.evaluation.predictions import Predictions
from mixmo.metrics.calibration import bin_numbers

RESAMPLES = 1000
BINS = 15
CELLS = 4_000_000
"""Counts held at a time."""

Array = npt.NDArray[np.float64]


def replicates(found: Predictions) -> dict[str, Array]:
    """Return metrics of the logit average, and diversity, on resampled test images.

    The resamples depend on the number of images only: those of two networks on the same images are paired.

    Args:
        found: Predictions of N images.

    Returns:
        (R,) values for ``accuracy``, ``nll``, ``brier``, ``ece``, ``misclassification_auroc`` and, for several members,
        ``d_re`` and ``disagreement``. They are not defined (NaN) where a resample has no wrong or no right prediction.

    Example:
        >>> import torch
        >>> one = Predictions(torch.eye(2)[:, None] * 9, torch.tensor([0, 1]), ["a", "b"])
        >>> replicates(one)["accuracy"].mean()
        np.float64(1.0)
    """
    samples = found.average()
    confidence, right = samples.confidence.numpy(), samples.right.numpy()
    bins = np.eye(BINS)[bin_numbers(samples.confidence, BINS).numpy()] * (right - confidence)[:, None]
    columns = [np.stack([right, samples.nll.numpy(), samples.brier.numpy()], 1), bins, *_pairs(found)]
    parts: dict[str, list[Array]] = {}
    for counts in _counts(len(right)):
        for key, values in _metrics(counts, columns, confidence, right).items():
            parts.setdefault(key, []).append(values)
    return {key: np.concatenate(values) for key, values in parts.items()}


def interval(values: Array) -> tuple[float, float]:
    """Return the 95 % percentile interval of replicates; NaN if they are not defined.

    Example:
        >>> interval(np.arange(1001.0))
        (25.0, 975.0)
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def mean_replicates(each: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Return the mean over several networks, such as seeds, of their replicates."""
    return {key: np.mean([values[key] for values in each], axis=0) for key in each[0]}


def _counts(images: int) -> Iterator[Array]:
    """Yield how often each image is drawn in each resample, (r, N) at a time."""
    rng = np.random.default_rng(0)
    step = max(1, min(RESAMPLES, CELLS // images))
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        drawn = rng.integers(0, images, (rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(float)


def _pairs(found: Predictions) -> list[Array]:
    """Return for each pair of members (N, P): whether one is wrong, whether both are, whether they disagree."""
    predicted = found.logits.argmax(2)
    members = predicted.shape[1]
    if members < 2:
        return []
    first, second = np.triu_indices(members, 1)
    wrong, classes = (predicted != found.targets[:, None]).numpy(), predicted.numpy()
    one = wrong[:, first] != wrong[:, second]
    both = wrong[:, first] & wrong[:, second]
    differ = classes[:, first] != classes[:, second]
    return [each.astype(float) for each in (one, both, differ)]


def _metrics(counts: Array, columns: Sequence[Array], confidence: Array, right: Array) -> dict[str, Array]:
    images = counts.shape[1]
    means, bins, *pairs = ((counts @ part) / images for part in columns)
    found = {key: means[:, place] for place, key in enumerate(("accuracy", "nll", "brier"))}
    found |= {"ece": np.abs(bins).sum(1), "misclassification_auroc": _auroc(counts, confidence, right)}
    if pairs:
        one, both, differ = pairs
        ratio = np.where(both > 0.5 / images, one / np.maximum(both, 0.5 / images), 2 * one)  # as in Diversity
        found |= {"d_re": ratio.mean(1), "disagreement": differ.mean(1)}
    return found


def _auroc(counts: Array, confidence: Array, right: Array) -> Array:
    """Return the AUROC of confidence for right against wrong predictions, ties counting one half."""
    order = np.argsort(confidence, kind="stable")
    starts = np.flatnonzero(np.diff(confidence[order], prepend=-1.0))
    rights = np.add.reduceat((counts * right)[:, order], starts, axis=1)
    wrongs = np.add.reduceat((counts * (1 - right))[:, order], starts, axis=1)
    below = wrongs.cumsum(1) - wrongs / 2
    pairs = rights.sum(1) * wrongs.sum(1)
    return np.where(pairs > 0, (rights * below).sum(1) / np.maximum(pairs, 1), np.nan)
