"""Calibration errors against brute force, also on the edges of bins."""

import math

import pytest
import torch
from hypothesis import given
from oracles import adaptive_gaps, draws, ece_by_loop, fast, in_batches, metrics_of, sample, softmax

from mixmo.metrics import Calibration
from mixmo.metrics.calibration_errors import bin_numbers


@fast
@given(**draws)
def test_calibration_matches_brute_force(n, classes, scale, coarse, seed):
    logits, targets = sample(n, min(classes, 12), scale, coarse, seed)
    classes = logits.shape[2]
    p, t = softmax(logits.numpy()[:, 0]), targets.numpy()
    found = metrics_of(Calibration(), *in_batches(torch.from_numpy(p), targets))
    confidence, correct = p.max(1), (p.argmax(1) == t).astype(float)
    ece, mce = ece_by_loop(confidence, correct)
    assert found["ece"] == pytest.approx(ece, abs=1e-9)
    assert found["mce"] == pytest.approx(mce, abs=1e-9)
    adaptive = sum(gap * length for gap, length in adaptive_gaps(confidence, correct)) / n
    assert found["ece_adaptive"] == pytest.approx(adaptive, abs=1e-9)
    classwise = 0.0
    for k in range(classes):
        hits = (t == k).astype(float)
        classwise += ece_by_loop(p[:, k], hits)[0] / classes
    assert found["ece_classwise"] == pytest.approx(classwise, abs=1e-9)


@pytest.mark.parametrize("number", range(1, 15))
def test_every_edge_of_a_bin_belongs_to_the_bin_below(number):
    edge = number / 15
    above = math.nextafter(edge, 1)
    assert bin_numbers(torch.tensor([edge, above], dtype=torch.double), 15).tolist() == [number - 1, number]


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    """lo < confidence <= hi: 0.6 = 9/15 shares the bin of 0.55, not that of 0.65."""
    p = torch.tensor([[0.6, 0.4], [0.55, 0.45]], dtype=torch.double)
    assert metrics_of(Calibration(), (p, torch.tensor([0, 1])))["ece"] == pytest.approx(abs(0.5 - 0.575))


def test_certain_predictions_are_in_the_last_bin():
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.95, 0.05]])
    found = metrics_of(Calibration(), (p, torch.tensor([0, 1, 0])))["ece"]
    assert found == pytest.approx(2.95 / 3 - 2 / 3, abs=1e-7)
