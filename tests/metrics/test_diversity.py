"""Diversity of members and the gain from averaging, against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import draws, fast, in_batches, metrics_of, sample, softmax

from mixmo.metrics import Diversity


@fast
@given(**draws, members=st.integers(2, 4))
def test_diversity_matches_the_oracles(n, classes, scale, coarse, seed, members):
    logits, targets = sample(n, classes, scale, coarse, seed, members)
    p, t = softmax(logits.numpy()), targets.numpy()
    found = metrics_of(Diversity(members), *in_batches(torch.from_numpy(p), targets))
    predictions = p.argmax(2)
    right = predictions == t[:, None]
    expected = {"d_re": [], "disagreement": []}
    for i in range(members):
        for j in range(i + 1, members):
            n00 = (~right[:, i] & ~right[:, j]).sum()
            n10, n01 = (right[:, i] & ~right[:, j]).sum(), (~right[:, i] & right[:, j]).sum()
            expected["d_re"].append((n10 + n01) / n00 if n00 else 2 * (n10 + n01) / n)
            expected["disagreement"].append((predictions[:, i] != predictions[:, j]).mean())
    for name, values in expected.items():
        assert found[name] == pytest.approx(np.mean(values), rel=1e-6, abs=1e-6), name


@fast
@given(**draws, members=st.integers(2, 4))
def test_gain_by_brute_force(n, classes, scale, coarse, seed, members):
    logits, targets = sample(n, classes, min(scale, 30.0), coarse, seed, members)
    p, t = softmax(logits.numpy()), targets.numpy()
    found = metrics_of(Diversity(members), *in_batches(torch.from_numpy(p), targets))
    right = p.argmax(2) == t[:, None]
    nll = -np.log(p[np.arange(n), :, t])
    together = -np.log(p.mean(1)[np.arange(n), t])
    assert found["member_mean_accuracy"] == pytest.approx(right.mean())
    assert found["oracle_accuracy"] == pytest.approx(right.any(1).mean())
    assert found["member_mean_nll"] == pytest.approx(nll.mean())
    assert found["nll_gain"] == pytest.approx(nll.mean() - together.mean(), abs=1e-9)
    assert found["nll_gain"] >= -1e-12
