"""Intervals cover the truth as often as they say: populations whose metrics are known exactly are drawn from again."""

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind, ttest_rel

from mixmo.evaluation.intervals import LEAST, difference_intervals, image_intervals, seeds_interval
from mixmo.evaluation.predictions import Predictions

KINDS, CLASSES = 5000, 5


class Population:
    """Kinds of images that are equally frequent, the probabilities of their classes, and two networks' logits."""

    def __init__(self, scale, sharpness, rng):
        base = scale * rng.normal(size=(KINDS, CLASSES)) * rng.gamma(2, 1, (KINDS, 1))
        self.truth = torch.from_numpy(base).softmax(1)
        noise = rng.normal(size=(2, KINDS, 2, CLASSES))
        self.logits = torch.from_numpy(sharpness * (base[:, None] + noise))

    def metrics(self, network):
        """Return the metrics of a network, summed over all kinds and classes."""
        average = self.logits[network].mean(1).log_softmax(1)
        chosen = torch.nn.functional.one_hot(average.argmax(1), CLASSES)
        members = self.logits[network].argmax(2)
        distances = (average.exp()[:, None] - torch.eye(CLASSES)).square().sum(2)
        return {
            "accuracy": (self.truth * chosen).sum(1).mean().item(),
            "nll": -(self.truth * average).sum(1).mean().item(),
            "brier": (self.truth * distances).sum(1).mean().item(),
            "disagreement": (members[:, 0] != members[:, 1]).double().mean().item(),
        }

    def draw(self, images, rng):
        """Return predictions of both networks of the same images."""
        kinds = rng.integers(0, KINDS, images)
        drawn = torch.from_numpy(rng.random((images, 1)))
        targets = (drawn > self.truth[kinds].cumsum(1)).sum(1).clamp(max=CLASSES - 1)
        return [Predictions(self.logits[network][kinds], targets, list("abcde")) for network in (0, 1)]


def coverages(scale, sharpness, images, times, seed=0):
    """Return how often intervals of each metric, and of the differences, hold the true value."""
    rng = np.random.default_rng(seed)
    population = Population(scale, sharpness, rng)
    true, other = population.metrics(0), population.metrics(1)
    hits = {}
    for _ in range(times):
        found = population.draw(images, rng)
        for key, (low, high) in image_intervals(found[0]).items():
            hits.setdefault(key, []).append(low <= true[key] <= high)
        for key, (low, high) in difference_intervals(*(each.average() for each in found)).items():
            hits.setdefault(f"{key} difference", []).append(low <= true[key] - other[key] <= high)
    assert set(hits) == {*true, *(f"{key} difference" for key in ("accuracy", "nll", "brier"))}
    return {key: np.mean(values) for key, values in hits.items()}


@pytest.mark.parametrize("images", [300, 1000])
@pytest.mark.parametrize(("scale", "sharpness"), [(1, 1), (4, 1), (4, 2), (7, 1)])
def test_intervals_over_images_cover_the_truth(scale, sharpness, images):
    for key, share in coverages(scale, sharpness, images, 250).items():
        assert 0.91 <= share <= (1 if key.startswith("accuracy d") or key == "disagreement" else 0.985), (key, share)


@pytest.mark.torture
@pytest.mark.parametrize("images", [300, 1000])
@pytest.mark.parametrize(("scale", "sharpness"), [(1, 1), (4, 1), (4, 2), (7, 1), (7, 2)])
def test_intervals_over_images_cover_the_truth_in_many_draws(scale, sharpness, images):
    for key, share in coverages(scale, sharpness, images, 4000, seed=1).items():
        assert 0.925 <= share <= (1 if key.startswith("accuracy d") or key == "disagreement" else 0.975), (key, share)


def test_metrics_biased_by_bins_or_of_few_errors_have_no_interval():
    """NLL and Brier score need enough wrong predictions; ECE, AUROC and d_re never have an interval."""
    targets = torch.arange(100) % 2
    for wrong, expected in ((LEAST - 1, {"accuracy"}), (LEAST, {"accuracy", "nll", "brier"})):
        logits = torch.eye(2)[(targets + (torch.arange(100) < wrong)) % 2][:, None]
        assert set(image_intervals(Predictions(logits, targets, ["a", "b"]))) == expected


def test_an_interval_without_mistakes_has_a_width():
    perfect = Predictions(torch.eye(3)[:, None] * 9, torch.arange(3), list("abc"))
    assert image_intervals(perfect)["accuracy"] == pytest.approx((3 / (3 + 1.959964**2), 1))
    low, high = difference_intervals(perfect.average(), perfect.average())["accuracy"]
    assert low == -high < 0


def test_intervals_over_seeds_are_scipys():
    own, other = [0.91, 0.93, 0.98], [0.9, 0.91, 0.95]
    expected = ttest_rel(own, other).confidence_interval(0.95)
    assert seeds_interval(own, other, paired=True) == pytest.approx(tuple(expected))
    expected = ttest_ind(own, other[:2], equal_var=False).confidence_interval(0.95)
    assert seeds_interval(own, other[:2], paired=False) == pytest.approx(tuple(expected))


def test_intervals_over_seeds_cover_the_truth():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, (2000, 4))
    own, other = shared + rng.normal(0.5, 1, shared.shape), shared + rng.normal(0, 2, shared.shape)
    for paired in (True, False):
        second = other if paired else rng.normal(0, 2, (2000, 3))
        ends = [seeds_interval(*pair, paired) for pair in zip(own, second, strict=True)]
        assert 0.93 <= np.mean([low <= 0.5 <= high for low, high in ends]) <= 0.97
