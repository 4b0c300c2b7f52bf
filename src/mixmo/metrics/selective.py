"""Selective prediction: does the confidence tell right predictions from wrong ones?"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchmetrics import Metric

from mixmo.metrics.checks import check_probabilities, check_targets, gathered

COVERAGES = (95, 99)


class SelectivePrediction(Metric):
    """Selective prediction by the largest probability.

    * ``aurc``: area under the risk–coverage curve, the mean over i = 1, …, N of the error rate among the i most
      confident samples (Geifman & El-Yaniv 2017). Among equal confidences the mean over all orders is taken.
    * ``eaurc``: ``aurc`` less that of the best order at the same accuracy (Geifman et al. 2019), counted exactly.
    * ``accuracy_at_95``, ``accuracy_at_99``: accuracy among the ⌈0.95 N⌉ or ⌈0.99 N⌉ most confident samples; equal
      confidences as in ``aurc``.
    * ``misclassification_auroc``: misclassification-detection AUROC, the probability that a right prediction has more
      confidence than a wrong one; equal confidences count one half; NaN where all or none are right.

    Example:
        >>> selective = SelectivePrediction()
        >>> selective.update(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
        >>> found = selective.compute()
        >>> found["aurc"].item(), found["eaurc"].item(), found["misclassification_auroc"].item()
        (0.25, 0.0, 1.0)
    """

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
        check_targets(targets, *p.shape)
        confidence, predicted = p.max(1)
        self.confidence.append(confidence)
        self.correct.append(predicted == targets)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all batches.

        Raises:
            InputError: if there were none.
        """
        confidence, correct = gathered(self.confidence), gathered(self.correct)
        errors, count = cumulative_errors(confidence, correct), len(confidence)
        kept = torch.arange(1, count + 1, dtype=torch.float64, device=errors.device)
        best = (kept - correct.sum()).clamp(min=0)
        found = {"aurc": (errors / kept).mean(), "eaurc": ((errors - best) / kept).mean()}
        for coverage in COVERAGES:
            number = -(-count * coverage // 100)
            found[f"accuracy_at_{coverage}"] = 1 - errors[number - 1] / number
        one_kind = bool(correct.all()) or not bool(correct.any())
        area = float("nan") if one_kind else float(roc_auc_score(correct.cpu().numpy(), confidence.cpu().numpy()))
        return found | {"misclassification_auroc": errors.new_tensor(area)}


def cumulative_errors(confidence: Tensor, correct: Tensor) -> Tensor:
    """Return (N,) errors among the 1, …, N most confident samples; ties share theirs evenly.

    Args:
        confidence: (N,).
        correct: (N,) booleans.

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
