"""Conformal sets and thresholds of confidence: what they promise, by repetition, and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from mixmo.errors import InputError
from mixmo.metrics.conformal import conformity, measure_sets, prediction_sets, set_threshold
from mixmo.metrics.selective import confidence_threshold


def drawn(rng, count, classes=5, scale=2):
    """Predictions of a network that is badly calibrated, and the classes."""
    logits = rng.normal(size=(count, classes)) * scale
    targets = np.array([rng.choice(classes, p=np.exp(row / 2) / np.exp(row / 2).sum()) for row in logits])
    return torch.from_numpy(logits).softmax(1), torch.from_numpy(targets)


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_sets_hold_the_true_class_as_often_as_asked(coverage):
    """On average over draws of 50 validation images and 200 new ones: between the share and 1 / (N + 1) above it."""
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        threshold = set_threshold(conformity(*drawn(rng, 50)), coverage)
        found.append(measure_sets(*drawn(rng, 200), threshold)["set_coverage"])
    error = 4 * np.std(found) / math.sqrt(len(found))
    assert coverage - error < np.mean(found) < coverage + 1 / 51 + error + 0.005  # the likeliest class adds a little


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_thresholds_are_quantiles(values, coverage):
    """All but k - 1 of the validation images' true classes are at the threshold or above."""
    threshold = set_threshold(torch.tensor(values, dtype=torch.float64), coverage)
    rank = math.floor((len(values) + 1) * (1 - coverage) + 1e-9)
    assert threshold == (sorted(values)[rank - 1] if rank else 0.0)


def test_sets_are_never_empty():
    probabilities, targets = drawn(np.random.default_rng(1), 90)
    found = measure_sets(probabilities, targets, 0.9)
    sets = prediction_sets(probabilities, 0.9)
    assert (sets.sum(1) == 1).all() and torch.equal(sets.int().argmax(1), probabilities.argmax(1))
    assert found == {"set_coverage": (probabilities.argmax(1) == targets).double().mean(), "set_size": 1}


@pytest.mark.slow
@pytest.mark.parametrize("risk", [0.2, 0.3])
def test_answers_are_wrong_as_seldom_as_asked(risk):
    """In nine of ten draws of 200 validation images at least, as the guarantee has it."""
    rng, kept, answered = np.random.default_rng(0), 0, []
    for _ in range(200):
        probabilities, targets = drawn(rng, 200, scale=5)
        confidence, predicted = probabilities.max(1)
        threshold = confidence_threshold(confidence, predicted == targets, risk)
        probabilities, targets = drawn(rng, 2000, scale=5)
        confidence, predicted = probabilities.max(1)
        shown = confidence >= threshold
        answered.append(shown.double().mean().item())
        kept += not shown.any() or (predicted != targets)[shown].double().mean().item() <= risk
    assert kept >= 180 and np.mean(answered) > 0.05


def test_the_bound_is_clopper_pearsons():
    """All right: n answers are enough where 1 - doubt^(1/n) is at most the risk; one fewer is not."""
    for count in (2, 30, 100):
        exact = beta.ppf(1 - 0.1 / 20, 1, count)
        confidence, correct = torch.linspace(0.5, 1, count), torch.ones(count, dtype=torch.bool)
        assert confidence_threshold(confidence, correct, exact + 1e-6) == 0.5
        assert confidence_threshold(confidence, correct, exact - 1e-6) == math.inf


def test_equal_confidences_are_kept_or_left_together():
    confidence, correct = torch.tensor([0.9] * 50 + [0.8] * 50), torch.tensor([True] * 50 + [False] * 50)
    assert confidence_threshold(confidence, correct, 0.2) == pytest.approx(0.9)
    assert confidence_threshold(torch.full((100,), 0.9), correct, 0.2) == math.inf


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, math.nan])
def test_shares_are_shares(share):
    with pytest.raises(InputError, match="is a share between 0 and 1"):
        set_threshold(torch.tensor([0.5]), share)
    with pytest.raises(InputError, match="is a share between 0 and 1"):
        confidence_threshold(torch.tensor([0.5]), torch.tensor([True]), share)
