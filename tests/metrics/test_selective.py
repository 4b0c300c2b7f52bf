"""Selective prediction against brute force, also with equal confidences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import draws, ece_by_loop, fast, in_batches, metrics_of, sample, softmax
from sklearn.metrics import roc_auc_score

from mixmo.metrics import Calibration, SelectivePrediction


@fast
@given(**draws)
def test_selective_prediction_matches_brute_force(n, classes, scale, coarse, seed):
    logits, targets = sample(n, classes, scale, coarse, seed)
    p, t = softmax(logits.numpy()[:, 0]), targets.numpy()
    found = metrics_of(SelectivePrediction(), *in_batches(torch.from_numpy(p), targets))
    confidence, correct = p.max(1), p.argmax(1) == t
    risks = []
    for i in range(1, n + 1):  # the mean over all orders of equal confidences
        threshold = np.sort(confidence)[::-1][i - 1]
        above, level = confidence > threshold, confidence == threshold
        errors = (~correct[above]).sum() + (i - above.sum()) * (~correct[level]).mean()
        risks.append(errors / i)
    assert found["aurc"] == pytest.approx(np.mean(risks), abs=1e-9)
    if 0 < correct.sum() < n:
        assert found["misclassification_auroc"] == pytest.approx(roc_auc_score(correct, confidence))
    else:
        assert math.isnan(found["misclassification_auroc"])


@given(
    scores=st.lists(st.tuples(st.sampled_from([0.5, 0.6, 0.75, 11 / 15, 1.0]), st.booleans()), min_size=1, max_size=40)
)
def test_metrics_of_equal_confidences(scores):
    """Two classes at few levels, some on the edges of bins, against brute force, in any order of samples."""
    confidence, correct = np.array([score for score, _ in scores]), np.array([right for _, right in scores])
    p = torch.from_numpy(np.stack([confidence, 1 - confidence], 1))
    targets = torch.from_numpy((~correct).astype(int))
    found = metrics_of(Calibration(), (p, targets)) | metrics_of(SelectivePrediction(), (p, targets))
    ece, mce = ece_by_loop(confidence, correct.astype(float))
    assert (found["ece"], found["mce"]) == (pytest.approx(ece, abs=1e-9), pytest.approx(mce, abs=1e-9))
    order = np.random.default_rng(0).permutation(len(scores))
    again = metrics_of(Calibration(), (p[order], targets[order]))
    again |= metrics_of(SelectivePrediction(), (p[order], targets[order]))
    assert again == pytest.approx(found, nan_ok=True)
    risks = []
    for kept in range(1, len(scores) + 1):  # the mean over all orders of equal confidences
        threshold = np.sort(confidence)[-kept]
        above, level = confidence > threshold, confidence == threshold
        risks.append(((~correct[above]).sum() + (kept - above.sum()) * (~correct[level]).mean()) / kept)
    assert found["aurc"] == pytest.approx(np.mean(risks), abs=1e-9)
    right, wrong = confidence[correct], confidence[~correct]
    if len(right) and len(wrong):
        wins = (right[:, None] > wrong).mean() + (right[:, None] == wrong).mean() / 2
        assert found["misclassification_auroc"] == pytest.approx(wins)
    else:
        assert math.isnan(found["misclassification_auroc"])
