"""Accuracy, proper scores and what averaging gains, against scikit-learn and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import draws, fast, in_batches, metrics_of, sample, softmax
from sklearn.metrics import log_loss, top_k_accuracy_score

from mixmo.metrics import EnsembleGain, Scores


@fast
@given(**draws)
def test_scores_match_the_oracles(n, classes, scale, coarse, seed):
    logits, targets = sample(n, classes, scale, coarse, seed)
    p, t = softmax(logits.numpy()[:, 0]), targets.numpy()
    found = metrics_of(Scores(), *in_batches(torch.from_numpy(p), targets))
    assert found["accuracy"] == pytest.approx((p.argmax(1) == t).mean())
    distinct = all(len(set(row)) == classes for row in p)
    if classes > 5 and distinct:  # scikit-learn breaks ties the other way round
        expected = top_k_accuracy_score(t, p, k=5, labels=range(classes))
        assert found["accuracy_top5"] == pytest.approx(expected)
    if classes <= 5:
        assert found["accuracy_top5"] == 1
    if p.min() > 1e-12:  # scikit-learn clips below its own epsilon
        assert found["nll"] == pytest.approx(log_loss(t, p, labels=range(classes)), rel=1e-6, abs=1e-9)
    brier = ((p - np.eye(classes)[t]) ** 2).sum(1).mean()
    assert found["brier"] == pytest.approx(brier, abs=1e-9)
    assert found["brier_per_class"] == pytest.approx(brier / classes, abs=1e-9)


@fast
@given(**draws, members=st.integers(1, 4))
def test_gain_by_brute_force(n, classes, scale, coarse, seed, members):
    logits, targets = sample(n, classes, min(scale, 30.0), coarse, seed, members)
    p, t = softmax(logits.numpy()), targets.numpy()
    found = metrics_of(EnsembleGain(), *in_batches(torch.from_numpy(p), targets))
    right = p.argmax(2) == t[:, None]
    nll = -np.log(p[np.arange(n), :, t])
    together = -np.log(p.mean(1)[np.arange(n), t])
    assert found["member_mean_accuracy"] == pytest.approx(right.mean())
    assert found["oracle_accuracy"] == pytest.approx(right.any(1).mean())
    assert found["member_mean_nll"] == pytest.approx(nll.mean())
    assert found["nll_gain"] == pytest.approx(nll.mean() - together.mean(), abs=1e-9)
    assert found["nll_gain"] >= -1e-12
