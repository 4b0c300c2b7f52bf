"""Calibration errors."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mixmo.metrics.checks import check_probabilities, check_targets, gather_state, zeros
from mixmo.metrics.description import Descriptions, describe_share


class Calibration(Metric):
    """Calibration errors: gaps between confidence and accuracy.

    * ``ece`` = Σ_bins (n_bin / N) * |accuracy(bin) - mean confidence(bin)| (Guo et al. 2017) over bins of equal width,
      open below and closed above (lo < confidence <= hi), so that a confidence of exactly 1 belongs to the last;
      torchmetrics closes bins below.
    * ``mce``: the largest of these gaps over non-empty bins.
    * ``ece_adaptive``: as ``ece``, with bins of equal size: the sorted confidences, split into parts whose sizes differ
      by at most one, larger parts first (Nguyen & O'Connor 2015). Among equal confidences, errors come first.
    * ``ece_classwise``: the mean over classes of the ``ece`` of p_k against [target = k] (Kull et al. 2019).

    Args:
        bins: Number of bins; 15 in the paper.

    Example:
        >>> calibration = Calibration()
        >>> calibration.update(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1]))
        >>> calibration.compute()["ece"].item()
        0.25
    """

    descriptions: ClassVar[Descriptions] = {
        "ece": describe_share(
            "ECE", "Expected calibration error: mean gap between confidence and accuracy over 15 bins.", False
        ),
        "mce": describe_share(
            "Maximum calibration error", "Largest gap between confidence and accuracy over 15 bins.", False
        ),
        "ece_adaptive": describe_share("Adaptive ECE", "ECE with bins of equally many images.", False),
        "ece_classwise": describe_share("Classwise ECE", "ECE of each class's probability, mean over classes.", False),
    }
    full_state_update = False
    class_gaps: Tensor
    confidence: list[Tensor]
    correct: list[Tensor]

    def __init__(self, bins: int = 15, **options: Any) -> None:
        super().__init__(**options)
        self.bins = bins
        self.add_state("class_gaps", zeros(1, 1), dist_reduce_fx="sum")  # (K, bins) once K is known
        for name in ("confidence", "correct"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add a batch of probabilities (B, K) and class numbers (B,)."""
        p = check_probabilities(probabilities)
        targets = check_targets(targets, *p.shape)
        classes = p.shape[1]
        confidence, predicted = p.max(1)
        hit = torch.zeros_like(p).scatter_(1, targets[:, None], 1)
        if self.class_gaps.shape != (classes, self.bins):
            self.class_gaps = self.class_gaps.new_zeros(classes, self.bins)
        cell = bin_numbers(p, self.bins) + self.bins * torch.arange(classes, device=p.device)
        self.class_gaps.view(-1).scatter_add_(0, cell.flatten(), (hit - p).flatten())
        self.confidence.append(confidence)
        self.correct.append((predicted == targets).double())

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics over all batches."""
        confidence, correct = gather_state(self.confidence), gather_state(self.correct)
        gaps, counts = bin_gaps(confidence, correct, self.bins)
        count = len(confidence)
        return {
            "ece": expected_error(gaps, counts),
            "mce": (gaps.abs() / counts.clamp(min=1)).max(),
            "ece_adaptive": _equal_size_gaps(confidence, correct, self.bins).abs().sum() / count,
            "ece_classwise": self.class_gaps.abs().sum() / (count * len(self.class_gaps)),
        }


def bin_numbers(values: Tensor, bins: int) -> Tensor:
    """Return each value's bin index, for bins of equal width on [0, 1], open below and closed above.

    Example:
        >>> bin_numbers(torch.tensor([0.0, 0.5, 0.51, 1.0]), 2)
        tensor([0, 0, 1, 1])
    """
    edges = torch.arange(1, bins, dtype=torch.float64, device=values.device) / bins  # linspace rounds otherwise
    return torch.bucketize(values.contiguous(), edges)  # right=False: edges[i-1] < value <= edges[i]


def bin_gaps(confidence: Tensor, correct: Tensor, bins: int = 15) -> tuple[Tensor, Tensor]:
    """Return for each bin of :func:`bin_numbers` the sum of correct - confidence and the number of samples.

    Example:
        >>> gaps, counts = bin_gaps(torch.tensor([0.9, 0.9]), torch.tensor([1.0, 0.0]), bins=2)
        >>> gaps.round(decimals=3).tolist(), counts.tolist()
        ([0.0, -0.8], [0.0, 2.0])
    """
    index, empty = bin_numbers(confidence, bins), zeros(bins).to(confidence.device)
    counts = empty.scatter_add(0, index, torch.ones_like(empty[:1]).expand(len(index)))
    return empty.scatter_add(0, index, correct.double() - confidence.double()), counts


def expected_error(gaps: Tensor, counts: Tensor) -> Tensor:
    """Return the expected calibration error from :func:`bin_gaps`."""
    return gaps.abs().sum() / counts.sum()


def _equal_size_gaps(confidence: Tensor, correct: Tensor, bins: int) -> Tensor:
    """Return the sum of correct - confidence in each bin of equal size."""
    order = correct.argsort(stable=True)
    order = order[confidence[order].argsort(stable=True)]
    gaps = (correct - confidence)[order]
    base, rest = divmod(len(gaps), bins)
    lengths = torch.tensor([base + (index < rest) for index in range(bins)], device=gaps.device)
    ends = lengths.cumsum(0)
    running = torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])
    return running[ends] - running[ends - lengths]
