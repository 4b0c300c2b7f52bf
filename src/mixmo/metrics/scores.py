"""Accuracy and proper scores."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mixmo.metrics.checks import check_probabilities, check_targets, gather_state, zeros
from mixmo.metrics.description import Description, Descriptions, describe_share
from mixmo.metrics.samples import score_samples


class Scores(Metric):
    """Top-1, balanced and top-5 accuracy, negative log-likelihood and Brier score.

    * ``accuracy``, ``accuracy_top5``: share of samples whose class is the most probable one, or among the five most
      probable; ties go to the lower class number.
    * ``balanced_accuracy``: mean recall over the classes that have samples.
    * ``nll``: mean of -log p(target), in nats; infinite where a target has probability 0.
    * ``brier``: mean of Σ_k (p_k - [k = target])², in [0, 2]; for two classes it is twice scikit-learn's
      ``brier_score_loss``, which counts one class.
    * ``brier_per_class``: the same divided by K, as in the paper's code.

    Example:
        >>> scores = Scores()
        >>> scores.update(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([0, 0]))
        >>> {name: round(value.item(), 3) for name, value in scores.compute().items()}
        {'accuracy': 0.5, 'accuracy_top5': 1.0, 'nll': 1.04, 'brier': 0.812, 'brier_per_class': 0.406,
         'balanced_accuracy': 0.5}
    """

    descriptions: ClassVar[Descriptions] = {
        "accuracy": describe_share("Accuracy", "Share of images whose most probable class is the true one.", True),
        "accuracy_top5": describe_share(
            "Top-5 accuracy", "Share of images whose true class is among the five most probable.", True
        ),
        "nll": Description("NLL", "Mean negative log-probability of the true class, in nats (log loss).", False),
        "brier": Description("Brier score", "Mean squared error of the probabilities, summed over classes.", False),
        "brier_per_class": Description("Brier score per class", "Brier score divided by the number of classes.", False),
        "balanced_accuracy": describe_share(
            "Balanced accuracy", "Mean recall: share of a class's images that are correct, mean over classes.", True
        ),
    }
    full_state_update = False
    total: Tensor
    count: Tensor
    right: list[Tensor]
    targets: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", zeros(5), dist_reduce_fx="sum")
        self.add_state("count", zeros(), dist_reduce_fx="sum")
        for name in ("right", "targets"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, targets: Tensor, log_probabilities: Tensor | None = None) -> None:
        """Add a batch of probabilities (B, K) and class numbers (B,).

        The negative log-likelihood uses ``log_probabilities`` if given: probabilities may have underflowed to 0.
        """
        p = check_probabilities(probabilities)
        targets = check_targets(targets, *p.shape)
        logs = p.log() if log_probabilities is None else log_probabilities.double()
        samples = score_samples(logs, targets, p)
        values = [samples.right, samples.right_top5, samples.nll, samples.brier, samples.brier / p.shape[1]]
        self.total += torch.stack([value.sum() for value in values])
        self.count += len(p)
        self.right.append(samples.right)
        self.targets.append(targets)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics over all batches."""
        right, targets = gather_state(self.right), gather_state(self.targets)
        recalls = right.new_zeros(int(targets.max()) + 1).scatter_reduce(0, targets, right, "mean", include_self=False)
        balanced = recalls[targets.unique()].mean()
        return dict(zip(self.descriptions, [*self.total / self.count, balanced], strict=True))
