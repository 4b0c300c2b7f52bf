"""Diversity of members, and the gain from averaging them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mixmo.errors import InputError
from mixmo.metrics.checks import check_not_empty, check_probabilities, check_targets, zeros
from mixmo.metrics.description import Description, Descriptions, describe_share
from mixmo.metrics.samples import score_samples


class Diversity(Metric):
    """Diversity of M >= 2 members, and the gain from averaging their probabilities.

    Means over the M (M - 1) / 2 pairs, where n_11, n_10, n_01 and n_00 are the shares of samples that both members,
    only the first, only the second and neither predict correctly:

    * ``d_re`` = (n_10 + n_01) / n_00, the ratio of single to shared errors (Aksela 2003); 2 (n_10 + n_01) for a pair
      without shared errors, as in the paper's code. Larger is more diverse.
    * ``disagreement``: share of samples for which the two predict different classes.

    Over all members:

    * ``member_mean_accuracy``, ``member_mean_nll``: the mean over members.
    * ``oracle_accuracy``: share of samples that at least one member predicts correctly.
    * ``nll_gain``: ``member_mean_nll`` minus the negative log-likelihood of the mean probabilities; never negative
      (Jensen), and larger the more members differ.

    Args:
        num_members: M.

    Raises:
        InputError: if M < 2.

    Example:
        >>> diversity = Diversity(num_members=2)
        >>> members = torch.tensor([[[0.1, 0.9], [0.1, 0.9]], [[0.1, 0.9], [0.9, 0.1]], [[0.9, 0.1], [0.1, 0.9]]])
        >>> diversity.update(members, torch.tensor([0, 0, 0]))
        >>> metrics = diversity.compute()
        >>> round(metrics["d_re"].item(), 3), round(metrics["disagreement"].item(), 3)
        (2.0, 0.667)
    """

    descriptions: ClassVar[Descriptions] = {
        "d_re": Description(
            "Error-ratio diversity",
            "Errors that only one of two members makes, divided by errors that both make (d_re in the paper).",
            True,
            digits=3,
        ),
        "disagreement": describe_share(
            "Disagreement", "Share of images for which two members predict different classes.", None
        ),
        "member_mean_accuracy": describe_share(
            "Mean accuracy of members", "Accuracy of each member alone, mean over members.", True
        ),
        "member_mean_nll": Description("Mean NLL of members", "NLL of each member alone, mean over members.", False),
        "oracle_accuracy": describe_share(
            "Oracle accuracy", "Share of images that at least one member predicts correctly.", True
        ),
        "nll_gain": Description(
            "NLL gain of averaging", "Mean NLL of members minus the NLL of their mean probabilities.", True
        ),
    }
    full_state_update = False
    right: Tensor
    both_right: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, num_members: int, **options: Any) -> None:
        super().__init__(**options)
        if num_members < 2:
            raise InputError(f"diversity needs at least two members, but num_members is {num_members}.")
        self.add_state("right", zeros(num_members), dist_reduce_fx="sum")
        self.add_state("both_right", zeros(num_members, num_members), dist_reduce_fx="sum")
        self.add_state("total", zeros(5), dist_reduce_fx="sum")  # all but d_re
        self.add_state("count", zeros(), dist_reduce_fx="sum")

    def update(self, members: Tensor, targets: Tensor, log_members: Tensor | None = None) -> None:
        """Add a batch of probabilities (B, M, K) and targets (B,), and log-probabilities if they are more precise."""
        p = check_probabilities(members, axes=3)
        if p.shape[1] != len(self.right):
            raise InputError(
                f"probabilities have shape {tuple(p.shape)}; they must be (B, M, K) with M = {len(self.right)}."
            )
        targets = check_targets(targets, len(p), p.shape[2])
        logs = p.log() if log_members is None else log_members.double()
        samples = score_samples(logs.flatten(0, 1), targets.repeat_interleave(p.shape[1]), p.flatten(0, 1))
        predicted, right, nll = (x.view(p.shape[:2]) for x in (samples.predicted, samples.right, samples.nll))
        self.right += right.sum(0)
        self.both_right += right.T @ right
        mean_nll = math.log(p.shape[1]) - (-nll).logsumexp(1)  # of the mean probabilities
        values = [disagreement(predicted), right.mean(1), nll.mean(1), right.amax(1), nll.mean(1) - mean_nll]
        self.total += torch.stack([value.sum() for value in values])
        self.count += len(p)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics over all batches."""
        check_not_empty(self.count)
        i, j = torch.triu_indices(len(self.right), len(self.right), 1, device=self.right.device)
        n = self.count
        n11 = self.both_right[i, j] / n
        first, second = self.right[i] / n, self.right[j] / n
        single, n00 = (first - n11) + (second - n11), 1 - first - second + n11
        shared = n00 * n > 0.5  # counts are integers: smaller values are rounding
        d_re = torch.where(shared, single / n00.where(shared, 1.0), 2 * single)
        return dict(zip(self.descriptions, [d_re.mean(), *self.total / n], strict=True))


def disagreement(predicted: Tensor) -> Tensor:
    """Return the share of member pairs whose predicted classes (N, M) differ, (N,)."""
    first, second = torch.triu_indices(predicted.shape[1], predicted.shape[1], 1, device=predicted.device)
    return (predicted[:, first] != predicted[:, second]).double().mean(1)
