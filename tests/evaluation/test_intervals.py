"""Bootstrap replicates: they agree with the metrics themselves, and are paired."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixmo.evaluation import intervals
from mixmo.evaluation.evaluate import measure
from mixmo.evaluation.intervals import interval, mean_replicates, replicates
from mixmo.evaluation.predictions import Predictions


def drawn(seed, images=60, members=3, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, members, classes, generator=generator)
    return Predictions(logits, torch.randint(classes, (images,), generator=generator), list("abcd"))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), members=st.integers(1, 3))
def test_replicates_are_the_metrics_of_resampled_images(seed, members):
    found = drawn(seed, members=members)
    chosen = np.random.default_rng(seed).integers(0, 60, 60)
    counts = np.bincount(chosen, minlength=60)[None].astype(float)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "_counts", lambda images: iter([counts]))
        values = replicates(found)
    metrics = measure(found.logits[chosen], found.targets[chosen])
    known = metrics.average | metrics.diversity
    for key, value in values.items():
        assert value.shape == (1,)
        assert value[0] == pytest.approx(known[key], nan_ok=True), key
    assert ("d_re" in values) == (members > 1)


def test_intervals_of_a_mean_are_those_of_the_normal_distribution():
    found = drawn(0, images=2000, members=1)
    right = found.average().right.numpy()
    low, high = interval(replicates(found)["accuracy"])
    half = 1.96 * right.std() / np.sqrt(len(right))
    assert low == pytest.approx(right.mean() - half, abs=half / 5)
    assert high == pytest.approx(right.mean() + half, abs=half / 5)


def test_replicates_are_paired_in_blocks_of_any_size(monkeypatch):
    found = drawn(1)
    whole = replicates(found)
    assert np.ptp(replicates(found)["nll"] - whole["nll"]) == 0
    monkeypatch.setattr(intervals, "CELLS", 60 * 7)
    for key, values in replicates(found).items():
        np.testing.assert_allclose(values, whole[key])


def test_what_is_not_defined_has_no_interval():
    perfect = Predictions(torch.eye(3)[:, None] * 9, torch.arange(3), list("abc"))
    assert np.isnan(interval(replicates(perfect)["misclassification_auroc"])).all()


def test_seeds_are_averaged():
    first, second = replicates(drawn(1)), replicates(drawn(2))
    mean = mean_replicates([first, second])
    np.testing.assert_allclose(mean["ece"], (first["ece"] + second["ece"]) / 2)
