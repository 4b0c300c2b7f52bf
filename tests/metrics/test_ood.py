"""Out-of-distribution detection against brute force, also with equal scores."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import fast, sample, softmax
from scipy.stats import entropy

from mixmo.metrics import OutOfDistribution
from mixmo.metrics.ood import false_positive_rate, ood_scores


@fast
@given(n=st.integers(2, 30), scale=st.sampled_from([0.0, 1.0, 30.0]), coarse=st.booleans(), seed=st.integers(0, 500))
def test_out_of_distribution_by_brute_force(n, scale, coarse, seed):
    logits, _ = sample(n, 4, scale, coarse, seed, 2)
    out = np.arange(n) % 2 == 1
    metric = OutOfDistribution()
    metric.update(logits[~out], out=False)
    metric.update(logits[out], out=True)
    found = {name: value.item() for name, value in metric.compute().items()}
    p = softmax(logits.numpy())
    mean = p.mean(1)
    total, own = entropy(mean, axis=1), entropy(p, axis=2).mean(1)
    expected = {
        "max_probability": -mean.max(1), "entropy": total, "mutual_information": total - own,
        "energy": -np.log(np.exp(logits.numpy().mean(1)).sum(1)),
    }  # fmt: skip
    for name, scores in ood_scores(logits).items():
        np.testing.assert_allclose(scores, expected[name], atol=1e-9)
        scores = scores.numpy()
        unknown, known = scores[out], scores[~out]
        wins = (unknown[:, None] > known).mean() + (unknown[:, None] == known).mean() / 2
        assert found[f"{name}/auroc"] == pytest.approx(wins)
        thresholds = [s for s in sorted(set(scores), reverse=True) if (unknown >= s).mean() >= 0.95]
        assert found[f"{name}/fpr95"] == pytest.approx((known >= thresholds[0]).mean())
        precision, area, before = 0.0, 0.0, 0.0
        for s in sorted(set(scores), reverse=True):
            precision, recall = (unknown >= s).sum() / (scores >= s).sum(), (unknown >= s).mean()
            area, before = area + precision * (recall - before), recall
        assert found[f"{name}/aupr"] == pytest.approx(area)


LEVELS = st.tuples(*[st.sampled_from([0, 1, 2, 18, 19])] * 4).filter(any)

LEVELS = LEVELS.map(lambda counts: np.repeat([0.1, 0.5, 0.5 + 2**-40, 0.9], counts))
"""Scores of a few levels, so that many are equal, and 95 % of them end between two levels."""


def rate_by_thresholds(positive, negative):
    """Return the share of negatives at the largest threshold that detects 95 % of positives, in integers."""
    for threshold in sorted(set(positive), reverse=True):
        if 100 * (positive >= threshold).sum() >= 95 * len(positive):
            return (negative >= threshold).sum() / len(negative)
    raise AssertionError


@given(positive=LEVELS, negative=LEVELS)
def test_false_positives_among_equal_scores(positive, negative):
    assert false_positive_rate(positive, negative) == rate_by_thresholds(positive, negative)


@given(positive=LEVELS, negative=LEVELS)
def test_out_of_distribution_metrics_of_equal_scores(positive, negative):
    """Two classes: the confidence grows with the difference of their logits."""
    metric = OutOfDistribution()
    for values, out in ((negative, False), (positive, True)):
        metric.update(torch.from_numpy(np.stack([values, np.zeros_like(values)], 1)[:, None]), out=out)
    found = {name: value.item() for name, value in metric.compute().items()}
    others, known = -positive, -negative  # a larger score for less confidence
    wins = (others[:, None] > known).mean() + (others[:, None] == known).mean() / 2
    assert found["max_probability/auroc"] == pytest.approx(wins)
    assert found["max_probability/fpr95"] == pytest.approx(rate_by_thresholds(others, known))
    assert found["mutual_information/auroc"] == 0.5 and found["mutual_information/fpr95"] == 1


def test_nineteen_of_twenty_are_95_percent():
    """The curve of scikit-learn leaves out points that lie on a line between two others."""
    metric = OutOfDistribution()
    values = torch.tensor([[[0.0, 0.0]]] * 18 + [[[3.0, 0.0]]] + [[[5.0, 0.0]]])
    metric.update(values, out=False)
    metric.update(values, out=True)
    assert metric.compute()["max_probability/fpr95"].item() == pytest.approx(0.95)


@pytest.mark.parametrize("seed", range(5))
def test_members_that_agree_have_no_mutual_information(seed):
    """Not even from rounding, which would rank the images."""
    logits = torch.from_numpy(np.random.default_rng(seed).standard_normal((200, 1, 9)) * 3).repeat(1, 3, 1)
    assert not ood_scores(logits)["mutual_information"].any()


def test_one_member_has_no_mutual_information():
    assert not ood_scores(torch.randn(50, 1, 9))["mutual_information"].any()


def test_out_of_distribution_needs_both_kinds():
    metric = OutOfDistribution()
    metric.update(torch.randn(3, 2, 4), out=True)
    with pytest.raises(ValueError, match="need test images and OOD images"):
        metric.compute()
