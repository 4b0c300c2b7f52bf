"""Figures of merit against scikit-learn, brute force and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, top_k_accuracy_score

import mixmo
from mixmo import metrics

draws = {
    "n": st.integers(1, 40),
    "classes": st.integers(2, 12),
    "scale": st.floats(0.1, 30),
    "seed": st.integers(0, 999),
}


def sample(n, classes, scale, seed, members=1):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, members, classes)) * scale
    return torch.from_numpy(logits), torch.from_numpy(rng.integers(0, classes, n))


def softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def calibration_error_by_loop(probabilities, targets, bins=15):
    total = 0.0
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    for i in range(bins):
        low, high = i / bins, (i + 1) / bins
        inside = (confidence > low) & (confidence <= high if i < bins - 1 else confidence <= 1.0000001)
        if inside.any():
            total += abs((predicted == targets)[inside].mean() - confidence[inside].mean()) * inside.mean()
    return total


@settings(max_examples=60)
@given(**draws, members=st.integers(1, 4))
def test_evaluate_matches_the_oracles(n, classes, scale, seed, members):
    logits, targets = sample(n, classes, scale, seed, members)
    figures = mixmo.evaluate(logits, targets)
    each, labels = softmax(logits.numpy()), list(range(classes))
    oracles = {"": softmax(logits.numpy().mean(1)), "probability_average/": each.mean(1)}
    oracles |= {f"member_{i}/": each[:, i] for i in range(members)}
    assert len(figures) == 5 * len(oracles) + (2 if members > 1 else 0)
    for prefix, p in oracles.items():
        t = targets.numpy()
        assert figures[f"{prefix}accuracy"] == pytest.approx((p.argmax(1) == t).mean())
        if classes > 5:
            top5 = top_k_accuracy_score(t, p, k=5, labels=labels)
            assert figures[f"{prefix}accuracy_top5"] == pytest.approx(top5)
        else:
            assert figures[f"{prefix}accuracy_top5"] == 1
        if p.min() > 1e-12:  # scikit-learn clips below its own epsilon
            assert figures[f"{prefix}nll"] == pytest.approx(log_loss(t, p, labels=labels), rel=1e-6, abs=1e-9)
        brier = ((p - np.eye(classes)[t]) ** 2).sum(1).mean()
        assert figures[f"{prefix}brier"] == pytest.approx(brier, abs=1e-9)
        assert figures[f"{prefix}ece"] == pytest.approx(calibration_error_by_loop(p, t), abs=1e-9)
    if members > 1:
        wrong = logits.argmax(2).numpy() != targets.numpy()[:, None]
        ratios, differ = [], []
        for i in range(members):
            for j in range(i):
                single, both = (wrong[:, i] != wrong[:, j]).sum(), (wrong[:, i] & wrong[:, j]).sum()
                ratios.append(single / both if both else 2 * single / n)
                differ.append((logits[:, i].argmax(1) != logits[:, j].argmax(1)).double().mean().item())
        assert figures["d_re"] == pytest.approx(np.mean(ratios))
        assert figures["disagreement"] == pytest.approx(np.mean(differ))


def test_huge_logits_give_finite_figures():
    logits = torch.tensor([[[1e4, -1e4], [1e4, 0.0]], [[-1e4, 1e4], [0.0, 1e4]]])
    figures = mixmo.evaluate(logits, torch.tensor([0, 0]))
    assert all(math.isfinite(value) for value in figures.values())


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    """lo < confidence <= hi: 0.6 = 9/15 shares the bin of 0.55, not that of 0.65."""
    p = torch.tensor([[0.6, 0.4], [0.55, 0.45]], dtype=torch.double)
    assert metrics.expected_calibration_error(p, torch.tensor([0, 1])) == pytest.approx(abs(0.5 - 0.575))


def test_certain_predictions_are_in_the_last_bin():
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.95, 0.05]])
    assert metrics.expected_calibration_error(p, torch.tensor([0, 1, 0])) == pytest.approx(2.95 / 3 - 2 / 3, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_precision_is_evaluated_in_float64(dtype):
    logits, targets = sample(50, 10, 3, 0, 2)
    low = logits.to(dtype)
    assert mixmo.evaluate(low, targets) == mixmo.evaluate(low.double(), targets)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2), "do not fit"),
        (torch.zeros(2, 1, 3), torch.zeros(3), "do not fit"),
        (torch.zeros(0, 1, 3), torch.zeros(0), "are empty"),
        (torch.tensor([[[0.0, 0.0]], [[float("nan"), 0.0]]]), torch.zeros(2), "row 1 are not finite"),
        (torch.zeros(2, 1, 3), torch.tensor([0, -1]), "target -1 in row 1"),
    ],
)
def test_bad_predictions_are_refused(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        mixmo.evaluate(logits, targets.long())


def test_diversity_needs_two_members():
    with pytest.raises(ValueError, match="between members"):
        metrics.disagreement(torch.zeros(3, 1))
