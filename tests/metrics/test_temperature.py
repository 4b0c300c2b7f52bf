"""Temperature scaling against a grid."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import fast, sample, softmax

from mixmo.errors import InputError
from mixmo.evaluation.calibration import fit_calibration
from mixmo.metrics import fit_temperature
from mixmo.metrics.temperature import describe_uncertainty, temperature_interval, two_fold, weight_members


@settings(max_examples=40)
@given(data=st.data(), n=st.integers(1, 12), one_class=st.booleans())
def test_temperature_of_few_levels(data, n, one_class):
    """Ties, single classes, only correct or only wrong predictions: no temperature on a grid is better."""
    levels = st.lists(st.sampled_from([-3.0, 0.0, 1.0, 1.0, 20.0]), min_size=3, max_size=3)
    logits = torch.tensor(data.draw(st.lists(levels, min_size=n, max_size=n)), dtype=torch.double)
    targets = torch.tensor(data.draw(st.lists(st.integers(0, 0 if one_class else 2), min_size=n, max_size=n)))
    found = fit_temperature(logits, targets)

    def nll(temperature):
        return torch.nn.functional.cross_entropy(logits / temperature, targets).item()

    best = min(nll(temperature) for temperature in np.geomspace(0.01, 100, 300))
    assert 0.0099 < found < 101 and nll(found) <= best + 1e-6 * (1 + best)


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_validation_images_without_a_mistake_make_nobody_surer(scale):
    logits, targets = torch.eye(3) * scale, torch.arange(3)
    assert fit_temperature(logits, targets) < 0.1 or scale > 10
    found = fit_calibration(logits, targets)
    assert found.temperature == 1 and (found.interval is None or found.interval[0] <= 1 <= found.interval[1])
    assert fit_calibration(logits.repeat(9, 1), torch.arange(3).repeat(9).flip(0)).interval is not None  # with mistakes
    assert torch.allclose(found.confidence, logits.double().softmax(1).amax(1))
    assert fit_calibration(logits, targets.roll(1)).temperature > 50  # all wrong


def test_an_interval_that_is_open_says_so():
    assert " interval on the validation images is above 1.20; more" in describe_uncertainty(1.2, 100.0)
    assert " is 1.20 to 5.00; " in describe_uncertainty(1.2, 5.0) and describe_uncertainty(1.2, 2.4) == ""


def test_a_temperature_that_changes_nothing_is_one():
    assert fit_temperature(torch.full((4, 3), 2.5), torch.tensor([0, 1, 2, 0])) == 1
    with pytest.raises(InputError, match="are empty"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


@fast
@given(truth=st.floats(0.2, 5), seed=st.integers(0, 100))
def test_temperature_is_the_best_of_a_grid(truth, seed):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.standard_normal((400, 5)) * 2)
    targets = torch.from_numpy(np.array([rng.choice(5, p=row) for row in softmax(logits.numpy())]))
    found = fit_temperature(logits * truth, targets)

    def nll(temperature):
        return torch.nn.functional.cross_entropy(logits * truth / temperature, targets).item()

    grid = np.exp(np.linspace(math.log(0.05), math.log(20), 400))
    assert nll(found) <= min(nll(t) for t in grid) + 1e-9
    assert found == pytest.approx(truth, rel=0.35)


@pytest.mark.parametrize(("count", "sure"), [(20, False), (200, True)])
def test_intervals_hold_the_true_temperature_and_tell_when_images_are_too_few(count, sure):
    """In 95 % of 150 draws, by binomial bounds; 20 images never determine a temperature, 200 do."""
    rng, hits, truth = np.random.default_rng(0), 0, 1.5
    for _ in range(150):
        logits = 2 * rng.standard_normal((count, 5))
        targets = np.array([rng.choice(5, p=row) for row in softmax(logits)])
        low, high = temperature_interval(torch.from_numpy(truth * logits), torch.from_numpy(targets))
        hits += low <= truth <= high
        assert (describe_uncertainty(low, high) == "") == sure
    assert 0.88 < hits / 150 < 0.99


def test_two_fold_scaling_never_fits_what_it_evaluates():
    logits, targets = sample(40, 3, 1.0, False, 0)
    logits = logits[:, 0]
    targets[:30] = logits[:30].argmax(1)  # so that the best temperature is no limit of the search
    scaled = two_fold(logits, targets)
    flipped = targets.clone()
    flipped[::2] = (flipped[::2] + 1) % 3  # other labels in one half change the other half only
    other = two_fold(logits, flipped)
    assert torch.equal(scaled[::2], other[::2]) and not torch.equal(scaled[1::2], other[1::2])
    torch.testing.assert_close(scaled[::2], logits[::2] / fit_temperature(logits[1::2], targets[1::2]))


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0.0, 0.5, 2.0])), min_size=1, max_size=4))
def test_weighted_members_have_the_weighted_average_without_those_of_weight_zero(networks):
    members, weights = zip(*networks, strict=True)
    logits = [torch.randn(5, count, 3, dtype=torch.double) for count in members]
    if not any(weights):
        return
    found = weight_members(logits, weights)
    expected = sum(weight * part.sum(1) for weight, part in zip(weights, logits, strict=True)) / sum(members)
    torch.testing.assert_close(found.mean(1), expected)
    assert found.shape[1] == sum(count for count, weight in networks if weight)
