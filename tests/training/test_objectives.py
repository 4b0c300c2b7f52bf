"""The training objective, against NumPy."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from mixmo.batch_mixing import MixedBatch, smoothed_cross_entropy
from mixmo.config.settings import ObjectiveSettings
from mixmo.errors import InputError


def batch_of(rng, batch, members, classes):
    logits = rng.normal(0, 3, (batch, members, classes))
    targets, weights = rng.integers(0, classes, (batch, members)), rng.uniform(0, 2, (batch, members))
    shared = rng.random(batch) < 0.5
    empty = torch.empty(0)
    mixed = MixedBatch(empty, empty, *map(torch.from_numpy, (targets, weights, shared)))
    return logits, mixed


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(2, 6), st.floats(0, 0.9), st.integers(0, 99))
def test_the_loss_is_that_of_its_formula(batch, members, classes, smoothing, seed):
    """Σ_i w_i CE(logits_i, (1 - ε) y_i + ε / K), averaged over the batch."""
    logits, mixed = batch_of(np.random.default_rng(seed), batch, members, classes)
    smoothed = mixed._replace(objective=partial(smoothed_cross_entropy, label_smoothing=smoothing))
    targets = (1 - smoothing) * np.eye(classes)[mixed.targets.numpy()] + smoothing / classes
    expected = (-(targets * log_softmax(logits, axis=2)).sum(2) * mixed.weights.numpy()).sum(1).mean()
    assert smoothed.loss(torch.from_numpy(logits)).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing": 1.0}, "objective.label_smoothing is 1.0; it must be less than 1"),
        ({"name": "own:focal", "label_smoothing": 0.1}, "objective.label_smoothing is only for mixed_cross_entropy"),
    ],
)
def test_wrong_terms_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        ObjectiveSettings(**changes)
