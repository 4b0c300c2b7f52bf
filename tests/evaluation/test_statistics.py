"""McNemar's test against the binomial distribution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from mixmo.evaluation.statistics import mcnemar


@given(first=st.lists(st.booleans(), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_mcnemar_is_a_sign_test(first, seed):
    a = np.array(first, dtype=float)
    b = np.random.default_rng(seed).integers(0, 2, len(a)).astype(float)
    wins, losses = int((a > b).sum()), int((a < b).sum())
    n, k = wins + losses, min(wins, losses)
    expected = 1.0 if not n else min(1.0, 2 * binom.cdf(k, n, 0.5))
    assert mcnemar(a, b) == pytest.approx(expected)
    assert mcnemar(a, a) == 1
