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
"""Number of candidate thresholds."""


class SelectivePrediction(Metric):
    """Selective prediction, with the largest probability as confidence.

    * ``aurc``: area under the risk–coverage curve, the mean over i = 1, …, N of the error rate among the i most
      confident samples (Geifman & El-Yaniv 2017), averaged over all orders of equal confidences.
    * ``misclassification_auroc``: misclassification-detection AUROC, the probability that a correct prediction has more
      confidence than a wrong one; ties count one half; NaN if all or no predictions are correct.

    Example:
        >>> selective = SelectivePrediction()
        >>> selective.update(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
        >>> metrics = selective.compute()
        >>> metrics["aurc"].item(), metrics["misclassification_auroc"].item()
        (0.25, 1.0)
    """

    descriptions: ClassVar[Descriptions] = {
        "aurc": describe_share(
            "AURC", "Area under the risk–coverage curve: error of the i most confident images, mean over i.", False
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
        """Return the metrics over all batches."""
        confidence, correct = gather_state(self.confidence), gather_state(self.correct)
        errors, count = cumulative_errors(confidence, correct), len(confidence)
        sizes = torch.arange(1, count + 1, dtype=torch.float64, device=errors.device)
        undefined = bool(correct.all()) or not bool(correct.any())
        auroc = math.nan if undefined else float(roc_auc_score(correct.cpu().numpy(), confidence.cpu().numpy()))
        return {"aurc": (errors / sizes).mean(), "misclassification_auroc": errors.new_tensor(auroc)}


def cumulative_errors(confidence: Tensor, correct: Tensor) -> Tensor:
    """Return the number of errors among the 1, …, N most confident samples, (N,); ties share errors evenly.

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
    """Return the lowest confidence at which answers are guaranteed an error rate of at most ``risk``.

    After Geifman & El-Yaniv (2017): of twenty thresholds, which keep 5, 10, …, 100 % of the N images, take the lowest
    whose exact binomial bound on the error rate (Clopper & Pearson, level 0.1 / 20) is at most ``risk``. With
    probability 0.9 over draws of the N images, the error rate on new images of the same kind is below ``risk``.
    Infinity, at which nothing is answered, if no threshold qualifies.
    """
    if not 0 < risk < 1:
        raise InputError(f"risk is {risk}; it is a share between 0 and 1.")
    if not len(confidence):
        raise InputError("a confidence threshold needs validation images, but there are none.")
    order = confidence.double().argsort(descending=True, stable=True)
    ordered, wrong = confidence[order].double(), (~correct[order].bool()).cumsum(0)
    for step in range(TRIES, 0, -1):
        threshold = float(ordered[math.ceil(len(ordered) * step / TRIES) - 1])
        kept = int((ordered >= threshold).sum())  # a threshold keeps all equal confidences
        errors = int(wrong[kept - 1])
        if errors < kept and float(beta.ppf(1 - 0.1 / TRIES, errors + 1, kept - errors)) <= risk:
            return threshold
    return math.inf
