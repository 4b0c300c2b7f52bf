"""Accuracy and proper scores against scikit-learn and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from oracles import draws, fast, in_batches, metrics_of, sample, softmax
from sklearn.metrics import balanced_accuracy_score, log_loss, top_k_accuracy_score

from mixmo.metrics import Scores


@pytest.mark.filterwarnings("ignore::UserWarning")  # of scikit-learn, on few samples
@fast
@given(**draws)
def test_scores_match_the_oracles(n, classes, scale, coarse, seed):
    logits, targets = sample(n, classes, scale, coarse, seed)
    p, t = softmax(logits.numpy()[:, 0]), targets.numpy()
    found = metrics_of(Scores(), *in_batches(torch.from_numpy(p), targets))
    assert found["accuracy"] == pytest.approx((p.argmax(1) == t).mean())
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(t, p.argmax(1)))
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
