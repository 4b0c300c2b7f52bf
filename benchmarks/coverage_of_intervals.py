"""Measure how often 95 % intervals over test images cover the true value, on simulated populations of images.

python benchmarks/coverage_of_intervals.py [--times N] [--save FILE]

A population has 5,000 equally frequent kinds of images with their class probabilities, and two networks of two members,
so that every true metric is a sum. Test sets are drawn from it repeatedly.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from mixmo.evaluation.intervals import difference_intervals, image_intervals
from mixmo.evaluation.predictions import Predictions
from mixmo.reporting.measurements import report

KINDS, CLASSES = 5000, 5
CASES = [(1, 1), (4, 1), (4, 2), (7, 1), (7, 2)]
"""How far apart the classes are, and by what factor the networks are overconfident."""
IMAGES = (300, 1000)


class Population:
    """Equally frequent kinds of images, their class probabilities, and two networks' logits."""

    def __init__(self, scale: float, sharpness: float, rng: np.random.Generator) -> None:
        base = scale * rng.normal(size=(KINDS, CLASSES)) * rng.gamma(2, 1, (KINDS, 1))
        self.truth = torch.from_numpy(base).softmax(1)
        noise = rng.normal(size=(2, KINDS, 2, CLASSES))
        self.logits = torch.from_numpy(sharpness * (base[:, None] + noise))

    def metrics(self, network: int) -> dict[str, float]:
        """Return the true metrics of a network, summed over all kinds and classes."""
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

    def draw(self, images: int, rng: np.random.Generator) -> list[Predictions]:
        """Return both networks' predictions for the same randomly drawn images."""
        kinds = rng.integers(0, KINDS, images)
        drawn = torch.from_numpy(rng.random((images, 1)))
        targets = (drawn > self.truth[kinds].cumsum(1)).sum(1).clamp(max=CLASSES - 1)
        return [Predictions(self.logits[network][kinds], targets, list("abcde")) for network in (0, 1)]


def coverages(scale: float, sharpness: float, images: int, times: int, seed: int = 0) -> dict[str, float]:
    """Return how often the intervals of each metric, and of each difference, cover the true value."""
    rng = np.random.default_rng(seed)
    population = Population(scale, sharpness, rng)
    true, other = population.metrics(0), population.metrics(1)
    hits: dict[str, list[bool]] = {}
    for _ in range(times):
        found = population.draw(images, rng)
        for key, (low, high) in image_intervals(found[0]).items():
            hits.setdefault(key, []).append(low <= true[key] <= high)
        for key, (low, high) in difference_intervals(*(each.average() for each in found)).items():
            hits.setdefault(f"{key} difference", []).append(low <= true[key] - other[key] <= high)
    return {key: float(np.mean(values)) for key, values in hits.items()}


def main() -> None:
    """Print the smallest and the largest share over all cases, and save them if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=4000, help="test sets that are drawn of each case")
    parser.add_argument("--save", metavar="FILE", help="keep the results in a JSON file")
    given = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    for images in IMAGES:
        cases = [coverages(*case, images, given.times, seed=1) for case in CASES]
        for key in cases[-1]:
            shares = [100 * case[key] for case in cases if key in case]
            rows.setdefault(key, {}).update({f"{images}, least": min(shares), f"{images}, most": max(shares)})
    report({"intervals that hold the true value, %, by test images": rows}, {"test sets": given.times}, given.save)


if __name__ == "__main__":
    main()
