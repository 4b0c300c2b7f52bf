"""Random predictions, and brute force to compare metrics with."""

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

draws = {
    "n": st.integers(1, 40),
    "classes": st.sampled_from([2, 3, 5, 12, 1000]),
    "scale": st.sampled_from([0.0, 0.3, 3.0, 30.0, 1000.0]),
    "coarse": st.booleans(),
    "seed": st.integers(0, 999),
}
"""``scale`` 0 makes all probabilities equal, 1000 certain; ``coarse`` makes ties."""


fast = settings(max_examples=60)


def sample(n, classes, scale, coarse, seed, members=1):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, members, classes)) * scale
    if coarse:
        logits = logits.round()
    return torch.from_numpy(logits), torch.from_numpy(rng.integers(0, classes, n))


def softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def metrics_of(metric, *batches):
    for batch in batches:
        metric.update(*batch)
    return {name: value.item() for name, value in metric.compute().items()}


def in_batches(*tensors):
    """The same samples in two batches of unequal size."""
    cut = len(tensors[0]) // 3
    parts = [[t[:cut] for t in tensors], [t[cut:] for t in tensors]]
    return [part for part in parts if len(part[0])]


def ece_by_loop(confidence, correct, bins=15):
    total, gaps = 0.0, [0.0]
    for i in range(bins):
        low, high = i / bins, (i + 1) / bins
        inside = (confidence > low if i else confidence >= 0) & (confidence <= high if i < bins - 1 else True)
        if inside.any():
            gaps.append(abs(correct[inside].mean() - confidence[inside].mean()))
            total += gaps[-1] * inside.mean()
    return total, max(gaps)


def adaptive_gaps(values, hits, bins=15):
    order = sorted(range(len(values)), key=lambda i: (values[i], hits[i]))
    parts = [np.array(part, dtype=int) for part in np.array_split(order, bins)]
    return [(abs(np.mean(hits[part]) - np.mean(values[part])), len(part)) for part in parts if len(part)]
