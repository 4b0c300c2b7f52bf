"""Conformal sets and confidence thresholds: guarantees by simulation, and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from mixmo.errors import InputError
from mixmo.evaluation.calibration import fit_calibration
from mixmo.metrics.conformal import SETS, conformity, measure_sets, prediction_sets, score_classes, set_threshold
from mixmo.metrics.selective import confidence_threshold


def drawn(rng, count, classes=5, scale=2):
    """Predictions of a badly calibrated network, and the classes."""
    logits = rng.normal(size=(count, classes)) * scale
    targets = np.array([rng.choice(classes, p=np.exp(row / 2) / np.exp(row / 2).sum()) for row in logits])
    return torch.from_numpy(logits).softmax(1), torch.from_numpy(targets)


@pytest.mark.parametrize("sets", ["marginal", "aps", "raps"])
@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_sets_hold_the_true_class_as_often_as_asked(coverage, sets):
    """On average over draws of 50 validation images and 200 new ones: between the share and 1 / (N + 1) above it."""
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        threshold = set_threshold(conformity(*drawn(rng, 50), sets), coverage)
        probabilities, targets = drawn(rng, 200)
        found.append(measure_sets(prediction_sets(probabilities, threshold, sets), targets)["set_coverage"])
    error = 4 * np.std(found) / math.sqrt(len(found))
    likeliest = 0.005 if sets == "marginal" else 0.02  # which is added where it is not in the set
    assert coverage - error < np.mean(found) < coverage + 1 / 51 + error + likeliest


def imbalanced(rng, count):
    """Logits of a network that has seen little of the last class, 5 % of the images."""
    targets = rng.choice(4, count, p=[0.35, 0.3, 0.3, 0.05])
    logits = rng.normal(size=(count, 4)) + 3 * np.eye(4)[targets]
    logits[:, 3] -= 3
    return torch.from_numpy(logits), torch.from_numpy(targets)


def test_class_wise_sets_cover_a_rare_class():
    """Marginal sets reach 90 % by the frequent classes; class-wise sets reach it for each class."""
    rng, found = np.random.default_rng(0), {"marginal": [], "classwise": []}
    for _ in range(40):
        calibration, (logits, targets) = fit_calibration(*imbalanced(rng, 600)), imbalanced(rng, 4000)
        for sets, covered in found.items():
            thresholds = calibration.set_thresholds(0.9, 4, sets)
            chosen = prediction_sets(calibration.probabilities(logits), thresholds, sets)
            covered.append(chosen.gather(1, targets[:, None])[targets == 3].double().mean().item())
    assert np.mean(found["marginal"]) < 0.5
    assert 0.88 < np.mean(found["classwise"]) < 0.96


def test_a_class_of_too_few_images_is_in_every_set():
    """n validation images give a threshold for 90 % from n = 9 on."""
    logits, targets = torch.randn(19, 3), torch.tensor([0] * 9 + [1] * 8 + [2] * 2)
    thresholds = fit_calibration(logits, targets).set_thresholds(0.9, 3, "classwise")
    assert thresholds.isinf().tolist() == [False, True, True]
    assert prediction_sets(torch.randn(50, 3).softmax(1), thresholds, "classwise")[:, 1:].all()


@pytest.mark.parametrize("sets", ["aps", "raps"])
def test_adaptive_sets_are_those_of_torch_uncertainty(sets, generator):
    """Only for these draws: if the quantile is the score of the least likely class, rounding decides."""
    conformal = pytest.importorskip("torch_uncertainty.post_processing.conformal")
    kind = {"aps": conformal.ConformalClsAPS, "raps": conformal.ConformalClsRAPS}[sets]
    theirs = kind(alpha=0.2, model=torch.nn.Identity(), randomized=False, enable_ts=False)
    logits = torch.randn(60, 7, dtype=torch.double, generator=generator) * 2
    targets = torch.randint(7, (60,), generator=generator)
    theirs.fit([(logits, targets)])
    torch.testing.assert_close(
        1 - score_classes(logits.softmax(1), sets), theirs._calculate_all_labels(logits.softmax(1))
    )
    fresh = torch.randn(200, 7, dtype=torch.double, generator=generator)
    found = prediction_sets(fresh.softmax(1), 1 - theirs.quantile.item(), sets)
    assert torch.equal(found, theirs(fresh) > 0) and 1 < found.sum(1).double().mean() < 7


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_thresholds_are_quantiles(values, coverage):
    """All but k - 1 of the validation images' true classes are at the threshold or above."""
    threshold = set_threshold(torch.tensor(values, dtype=torch.float64), coverage)
    rank = math.floor((len(values) + 1) * (1 - coverage) + 1e-9)
    assert threshold == (sorted(values)[rank - 1] if rank else -math.inf)


def test_sets_are_never_empty():
    probabilities, targets = drawn(np.random.default_rng(1), 90)
    for kind in SETS:
        sets = prediction_sets(probabilities, 0.99, kind)
        assert (sets.sum(1) == 1).all() and torch.equal(sets.int().argmax(1), probabilities.argmax(1))
    right = (probabilities.argmax(1) == targets).double()
    least = min(right[targets == number].mean().item() for number in range(5))
    assert measure_sets(sets, targets) == {"set_coverage": right.mean(), "set_coverage_class": least, "set_size": 1}


@pytest.mark.slow
@pytest.mark.parametrize("risk", [0.2, 0.3])
def test_answers_are_wrong_as_seldom_as_asked(risk):
    """In at least nine of ten draws of 200 validation images, as guaranteed."""
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
    """Without errors, n predictions suffice if 1 - doubt^(1/n) is at most the risk; one fewer does not."""
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
