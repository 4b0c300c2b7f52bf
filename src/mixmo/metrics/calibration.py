"""Does confidence mean what it says?"""

from __future__ import annotations

import torch
from torch import Tensor


def expected_calibration_error(probabilities: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Return ECE = Σ_bins (n_bin / N) * |accuracy(bin) - mean confidence(bin)| (Guo et al. 2017).

    Bins are of equal width, open below and closed above (lo < confidence <= hi), so that a confidence of
    exactly 1 belongs to the last one. torchmetrics closes them below.

    Args:
        probabilities: (N, K).
        targets: (N,) class numbers.
        bins: Number of bins; 15 in the paper.

    Returns:
        A value in [0, 1].

    Example:
        >>> expected_calibration_error(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1]))
        0.25
    """
    confidence, predicted = probabilities.double().max(1)
    correct = (predicted == targets).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    number = torch.bucketize(confidence, edges[1:-1])  # right=False: edges[i-1] < confidence <= edges[i]
    gaps = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gaps.scatter_add_(0, number, correct - confidence)
    return (gaps.abs().sum() / len(confidence)).item()
