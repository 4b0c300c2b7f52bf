"""Selective prediction."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from scipy.stats import beta
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchmetrics import Metric

from mixmo.errors import InputError
from mixmo.metrics.checks import check_probabilities, check_targets, gather_state
from mixmo.metrics.description import Description, Descriptions, describe_share

TRIES = 20
"""Thresholds of confidence that are tried."""


class SelectivePrediction(Metric):
    """Selective prediction by the largest probability.

    * ``aurc``: area under the risk–coverage curve, the mean over i = 1, …, N of the error rate among the i most
      confident samples (Geifman & El-Yaniv 2017). Among equal confidences the mean over all orders is taken.
    * ``misclassification_auroc``: misclassification-detection AUROC, the probability that a right prediction has more
      confidence than a wrong one; equal confidences count one half; NaN where all or none are right.

    Example:
        >>> selective = SelectivePrediction()
        >>> selective.update(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
        >>> found = selective.compute()
        >>> found["aurc"].item(), found["misclassification_auroc"].item()
        (0.25, 1.0)
    """

    descriptions: ClassVar[Descriptions] = {
        "aurc": describe_share(
            "AURC", "Area under the risk–coverage curve: mean error over all numbers of kept images.", False
        ),
        "misclassification_auroc": Description(
            "Misclassification AUROC",
            "Probability that a correct prediction is more confident than a wrong one; 0.5 is chance.",
            True,
        ),
    }
    full_state_update = False
    confidence: list[Tensor]
    correct: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("correct", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add a batch of probabilities (B, K) and class numbers (B,)."""
        p = check_probabilities(probabilities)
        targets = check_targets(targets, *p.shape)
        confidence, predicted = p.max(1)
        self.confidence.append(confidence)
        self.correct.append(predicted == targets)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all batches."""
        confidence, correct = gather_state(self.confidence), gather_state(self.correct)
        errors, count = cumulative_errors(confidence, correct), len(confidence)
        kept = torch.arange(1, count + 1, dtype=torch.float64, device=errors.device)
        one_kind = bool(correct.all()) or not bool(correct.any())
        area = float("nan") if one_kind else float(roc_auc_score(correct.cpu().numpy(), confidence.cpu().numpy()))
        return {"aurc": (errors / kept).mean(), "misclassification_auroc": errors.new_tensor(area)}


def cumulative_errors(confidence: Tensor, correct: Tensor) -> Tensor:
    """Return (N,) errors among the 1, …, N most confident samples; ties share theirs evenly.

    Example:
        >>> cumulative_errors(torch.tensor([0.9, 0.5, 0.5]), torch.tensor([True, False, True])).tolist()
        [0.0, 0.5, 1.0]
    """
    ordered, order = confidence.sort(descending=True)
    wrong = (~correct[order]).double()
    _, group, sizes = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    shared = torch.zeros(len(sizes), dtype=torch.float64, device=wrong.device).scatter_add_(0, group, wrong) / sizes
    errors: Tensor = shared[group].cumsum(0)
    return errors


def confidence_threshold(confidence: Tensor, correct: Tensor, risk: float) -> float:
    """Return the least confidence at which at most a share ``risk`` of the answers is wrong, with a guarantee.

    After Geifman & El-Yaniv (2017): twenty thresholds, which keep 5, 10, …, 100 % of the N images, each have an exact
    binomial bound (Clopper & Pearson) of the share of wrong answers, at 0.1 / 20; of those whose bound is at most
    ``risk`` the lowest is taken. With probability 0.9 over draws of the N images, the share among new ones of the same
    kind stays below ``risk``. It is infinity, at which nothing is answered, if no threshold is sure enough.
    """
    if not 0 < risk < 1:
        raise InputError(f"risk is {risk}; it is a share between 0 and 1.")
    if not len(confidence):
        raise InputError("there are no validation images to choose a threshold of confidence by.")
    order = confidence.double().argsort(descending=True, stable=True)
    ordered, wrong = confidence[order].double(), (~correct[order].bool()).cumsum(0)
    for step in range(TRIES, 0, -1):
        threshold = float(ordered[math.ceil(len(ordered) * step / TRIES) - 1])
        kept = int((ordered >= threshold).sum())  # equal confidences are kept or left together
        errors = int(wrong[kept - 1])
        if errors < kept and float(beta.ppf(1 - 0.1 / TRIES, errors + 1, kept - errors)) <= risk:
            return threshold
    return math.inf
