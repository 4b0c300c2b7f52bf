"""Bootstrap intervals and McNemar's test against closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from mixmo.evaluation.statistics import mcnemar, paired_interval


@settings(max_examples=20, deadline=None)
@given(mean=st.floats(-1, 1), sd=st.floats(0.1, 2), seed=st.integers(0, 50))
def test_intervals_are_those_of_the_normal_distribution(mean, sd, seed):
    sample = np.random.default_rng(seed).normal(mean, sd, 400)
    found, low, high = paired_interval(sample)
    half = 1.96 * sample.std(ddof=1) / 20
    assert found == pytest.approx(sample.mean())
    assert low == pytest.approx(sample.mean() - half, abs=half / 5)
    assert high == pytest.approx(sample.mean() + half, abs=half / 5)


@given(first=st.lists(st.booleans(), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_mcnemar_is_a_sign_test(first, seed):
    a = np.array(first, dtype=float)
    b = np.random.default_rng(seed).integers(0, 2, len(a)).astype(float)
    wins, losses = int((a > b).sum()), int((a < b).sum())
    n, k = wins + losses, min(wins, losses)
    expected = 1.0 if not n else min(1.0, 2 * binom.cdf(k, n, 0.5))
    assert mcnemar(a, b) == pytest.approx(expected)
    assert mcnemar(a, a) == 1


def test_equal_networks_have_no_difference():
    assert paired_interval(np.zeros(10)) == (0, 0, 0)
