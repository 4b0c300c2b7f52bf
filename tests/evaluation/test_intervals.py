"""Coverage of intervals, on samples of populations whose metrics are known exactly."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, t, ttest_ind, ttest_rel

from mixmo.evaluation.intervals import LEAST, difference_intervals, image_intervals, mcnemar, seeds_interval
from mixmo.evaluation.predictions import Predictions
from mixmo.metrics.samples import per_sample

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
coverages = importlib.import_module("coverage_of_intervals").coverages


@pytest.mark.parametrize("images", [300, 1000])
@pytest.mark.parametrize(("scale", "sharpness"), [(1, 1), (4, 1), (4, 2), (7, 1)])
def test_intervals_over_images_cover_the_truth(scale, sharpness, images):
    found = coverages(scale, sharpness, images, 250)
    metrics = {"accuracy", "nll", "brier"}
    assert set(found) == {*metrics, "disagreement", *(f"{key} difference" for key in metrics)}
    for key, share in found.items():
        assert 0.9 <= share <= (1 if key.startswith("accuracy d") or key == "disagreement" else 0.985), (key, share)


@pytest.mark.torture
@pytest.mark.parametrize("images", [300, 1000])
@pytest.mark.parametrize(("scale", "sharpness"), [(1, 1), (4, 1), (4, 2), (7, 1), (7, 2)])
def test_intervals_over_images_cover_the_truth_in_many_draws(scale, sharpness, images):
    for key, share in coverages(scale, sharpness, images, 4000, seed=1).items():
        assert 0.925 <= share <= (1 if key.startswith("accuracy d") or key == "disagreement" else 0.975), (key, share)


def test_metrics_biased_by_bins_or_of_few_errors_have_no_interval():
    """NLL and Brier score need enough wrong predictions; ECE, AUROC and d_re never have an interval."""
    targets = torch.arange(100) % 2
    for wrong, expected in ((LEAST - 1, {"accuracy"}), (LEAST, {"accuracy", "nll", "brier"})):
        logits = torch.eye(2)[(targets + (torch.arange(100) < wrong)) % 2][:, None]
        assert set(image_intervals(Predictions(logits, targets, ["a", "b"]))) == expected


def test_an_interval_without_mistakes_has_a_width():
    perfect = Predictions(torch.eye(3)[:, None] * 9, torch.arange(3), list("abc"))
    assert image_intervals(perfect)["accuracy"] == pytest.approx((3 / (3 + 1.959964**2), 1))
    low, high = difference_intervals(perfect.average(), perfect.average())["accuracy"]
    assert low == -high < 0


def test_intervals_over_seeds_are_scipys():
    own, other = [0.91, 0.93, 0.98], [0.9, 0.91, 0.95]
    expected = ttest_rel(own, other).confidence_interval(0.95)
    assert seeds_interval(own, other, paired=True) == pytest.approx(tuple(expected))
    expected = ttest_ind(own, other[:2], equal_var=False).confidence_interval(0.95)
    assert seeds_interval(own, other[:2], paired=False) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("paired", [True, False])
def test_seeds_that_are_alike_by_chance_give_no_interval(paired):
    assert np.isnan(seeds_interval([0.75, 0.8], [0.7, 0.75], paired=True)).all()
    assert np.isnan(seeds_interval([0.75, 0.75], [0.7, 0.7], paired)).all()


def test_intervals_over_seeds_cover_the_truth():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, (2000, 4))
    own, other = shared + rng.normal(0.5, 1, shared.shape), shared + rng.normal(0, 2, shared.shape)
    for paired in (True, False):
        second = other if paired else rng.normal(0, 2, (2000, 3))
        ends = [seeds_interval(*pair, paired) for pair in zip(own, second, strict=True)]
        assert 0.93 <= np.mean([low <= 0.5 <= high for low, high in ends]) <= 0.97


@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_a_sign_test(pairs):
    right = torch.tensor(pairs)
    own, other = (per_sample(torch.eye(2)[each.long()], torch.ones(len(pairs), dtype=torch.long)) for each in right.T)
    wins, losses = int((own.right > other.right).sum()), int((own.right < other.right).sum())
    n, k = wins + losses, min(wins, losses)
    expected = 1.0 if not n else min(1.0, 2 * binom.cdf(k, n, 0.5))
    assert mcnemar(own, other) == pytest.approx(expected)
    assert mcnemar(own, own) == 1


def test_intervals_over_folds_are_wider():
    """By the corrected resampled t-test: the variance of a mean of n is s² (1/n + 1/(k - 1))."""
    own, other = [0.9, 0.8, 0.95, 0.7, 0.85], [0.7, 0.75, 0.8, 0.72, 0.8]
    gains = np.subtract(own, other)
    half = t.ppf(0.975, 4) * gains.std(ddof=1) * np.sqrt(1 / 5 + 1 / 4)
    expected = (gains.mean() - half, gains.mean() + half)
    assert seeds_interval(own, other, paired=True, folds=5) == pytest.approx(expected)
    assert seeds_interval(own, own, paired=True, folds=5) == pytest.approx((np.nan, np.nan), nan_ok=True)
