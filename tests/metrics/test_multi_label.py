"""Metrics of several labels against scikit-learn, torchmetrics and brute force."""

import numpy as np
import pytest
import torch
from oracles import in_batches, metrics_of
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, hamming_loss, log_loss
from torchmetrics.functional.classification import multilabel_average_precision

import mixmo
from mixmo.errors import InputError
from mixmo.metrics import MultiLabelScores
from mixmo.metrics.multi_label import best_thresholds


def draw(seed, images=60, classes=4):
    """Draw logits in steps of a half, so that some tie, and labels from them; the last class is rare."""
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(images, classes, generator=generator)).round() / 2
    chance = (logits - torch.linspace(0, 3, classes)).sigmoid()
    return logits, (torch.rand(images, classes, generator=generator) < chance).long()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_scores_match_the_oracles(seed, threshold):
    logits, targets = draw(seed)
    p, y = logits.double().sigmoid().numpy(), targets.numpy()
    found = metrics_of(MultiLabelScores(threshold), *in_batches(logits, targets))
    assert found["map"] == pytest.approx(average_precision_score(y, p, average="macro"))
    assert found["map"] == pytest.approx(float(multilabel_average_precision(torch.tensor(p), targets, 4)), abs=1e-6)
    predicted = (p > threshold).astype(int)
    for average in ("micro", "macro"):
        expected = f1_score(y, predicted, average=average, zero_division=np.nan)
        assert found[f"f1_{average}"] == pytest.approx(expected)
    assert found["exact_match"] == pytest.approx((predicted == y).all(1).mean())
    assert found["hamming_loss"] == pytest.approx(hamming_loss(y, predicted))
    assert found["bce"] == pytest.approx(log_loss(y.ravel(), p.ravel()))
    assert found["label_brier"] == pytest.approx(brier_score_loss(y.ravel(), p.ravel()))
    cells = np.ceil(p.ravel() * 15)
    gaps = [abs((y.ravel() - p.ravel())[cells == cell].sum()) for cell in range(1, 16)]
    assert found["label_ece"] == pytest.approx(sum(gaps) / p.size)


def test_a_class_that_no_image_has_is_left_out():
    logits, targets = draw(0)
    targets[:, 1] = 0
    kept = [0, 2, 3]
    whole, part = (metrics_of(MultiLabelScores(), (logits[:, own], targets[:, own])) for own in ([0, 1, 2, 3], kept))
    assert whole["map"] == part["map"]
    assert np.isnan(metrics_of(MultiLabelScores(), (logits, torch.zeros_like(targets)))["map"])


@pytest.mark.parametrize("seed", range(4))
def test_no_other_threshold_has_a_better_f1(seed):
    logits, targets = draw(seed, images=30)
    p = logits.double().sigmoid()
    chosen = best_thresholds(p, targets)
    for k in range(4):
        predicted = (p[:, k] > torch.linspace(0, 1, 999, dtype=torch.float64)[:, None]).numpy()
        hits = predicted @ targets[:, k].numpy()
        best = (2 * hits / (predicted.sum(1) + int(targets[:, k].sum()))).max()
        assert f1_score(targets[:, k], p[:, k] > chosen[k]) == pytest.approx(best)


def test_evaluate_takes_several_labels_from_the_targets_shape():
    logits, targets = draw(0)
    members = torch.stack([logits, logits + 1.5], 1)
    found = mixmo.evaluate(members, targets.bool())
    assert found["bce"] == mixmo.evaluate(members.double().mean(1), targets)["bce"]
    assert found["member_1/bce"] == mixmo.evaluate(logits + 1.5, targets)["bce"]
    mean = members.double().sigmoid().mean(1)
    assert found["probability_average/bce"] == pytest.approx(log_loss(targets.numpy().ravel(), mean.numpy().ravel()))
    assert found["label_disagreement"] == pytest.approx(((logits > 0) != (logits + 1.5 > 0)).double().mean().item())
    assert not {"accuracy", "nll", "ece", "brier"} & found.keys()
    far = mixmo.evaluate(torch.full((1, 2, 3), 1e4), torch.zeros(1, 3))  # no sigmoid rounds it to infinity
    assert far["bce"] == far["probability_average/bce"] == pytest.approx(1e4)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([[0, 1], [0, 2]]), "targets in row 1 are not all 0 or 1"),
        (torch.tensor([[0.5, 1.0], [0, 1]]), "targets in row 0 are not all 0 or 1"),
        (torch.zeros(2, 3), r"targets have shape \(2, 3\); for logits \(2, 1, 2\) they must be \(2, 2\)"),
    ],
)
def test_what_is_no_set_of_labels_is_refused(targets, message):
    with pytest.raises(InputError, match=message):
        mixmo.evaluate(torch.zeros(2, 2), targets)
