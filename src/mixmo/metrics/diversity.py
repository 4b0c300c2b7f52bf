"""Diversity of members, and what averaging them gains."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mixmo.errors import InputError
from mixmo.metrics.checks import check_probabilities, check_some, check_targets, zeros
from mixmo.metrics.description import Description, Descriptions, describe_share
from mixmo.metrics.samples import score_samples


class Diversity(Metric):
    """Diversity of M >= 2 members, and what averaging their probabilities gains.

    Means over the M (M - 1) / 2 pairs; with n_11, n_10, n_01, n_00 the shares of samples that both, only the first,
    only the second and neither of two members gets right:

    * ``d_re`` = (n_10 + n_01) / n_00, the ratio of single to shared errors (Aksela 2003); for a pair without shared
      errors 2 (n_10 + n_01), the convention of the paper's code. The larger, the more diverse.
    * ``disagreement``: share of samples for which the two predict different classes.

    Of all members:

    * ``member_mean_accuracy``, ``member_mean_nll``: the mean over members.
    * ``oracle_accuracy``: share of samples that at least one member gets right, the limit of any choice among them.
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
        >>> found = diversity.compute()
        >>> round(found["d_re"].item(), 3), round(found["disagreement"].item(), 3)
        (2.0, 0.667)
    """

    descriptions: ClassVar[Descriptions] = {
        "d_re": Description(
            "Error-ratio diversity",
            "Images that one of two members gets wrong, divided by images that both get wrong (d_re in the paper).",
            True,
            digits=3,
        ),
        "disagreement": describe_share(
            "Disagreement", "Share of images for which two members predict different classes.", None
        ),
        "member_mean_accuracy": describe_share(
            "Mean accuracy of members", "Accuracy of a member alone, mean over members.", True
        ),
        "member_mean_nll": Description("Mean NLL of members", "NLL of a member alone, mean over members.", False),
        "oracle_accuracy": describe_share(
            "Oracle accuracy", "Share of images that at least one member gets right.", True
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
            raise InputError(f"diversity is measured between members, but there is {num_members}.")
        self.add_state("right", zeros(num_members), dist_reduce_fx="sum")
        self.add_state("both_right", zeros(num_members, num_members), dist_reduce_fx="sum")
        self.add_state("total", zeros(5), dist_reduce_fx="sum")  # all but d_re
        self.add_state("count", zeros(), dist_reduce_fx="sum")

    def update(self, members: Tensor, targets: Tensor, log_members: Tensor | None = None) -> None:
        """Add a batch of probabilities (B, M, K), with their logarithms if these are known better, and targets (B,)."""
        p = check_probabilities(members, axes=3)
        if p.shape[1] != len(self.right):
            raise InputError(
                f"probabilities of shape {tuple(p.shape)} do not fit (B, M, K) with M = {len(self.right)}."
            )
        targets = check_targets(targets, len(p), p.shape[2])
        logs = p.log() if log_members is None else log_members.double()
        own = score_samples(logs.flatten(0, 1), targets.repeat_interleave(p.shape[1]), p.flatten(0, 1))
        predicted, right, nll = (each.view(p.shape[:2]) for each in (own.predicted, own.right, own.nll))
        self.right += right.sum(0)
        self.both_right += right.T @ right
        together = math.log(p.shape[1]) - (-nll).logsumexp(1)
        values = [disagreement(predicted), right.mean(1), nll.mean(1), right.amax(1), nll.mean(1) - together]
        self.total += torch.stack([value.sum() for value in values])
        self.count += len(p)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all batches."""
        check_some(self.count)
        i, j = torch.triu_indices(len(self.right), len(self.right), 1, device=self.right.device)
        n = self.count
        n11 = self.both_right[i, j] / n
        first, second = self.right[i] / n, self.right[j] / n
        single, n00 = (first - n11) + (second - n11), 1 - first - second + n11
        shared = n00 * n > 0.5  # counts are whole: the rest is rounding
        d_re = torch.where(shared, single / n00.where(shared, 1.0), 2 * single)
        return dict(zip(self.descriptions, [d_re.mean(), *self.total / n], strict=True))


def disagreement(predicted: Tensor) -> Tensor:
    """Return the share of the pairs of members that predict different classes, (N,), for class numbers (N, M)."""
    first, second = torch.triu_indices(predicted.shape[1], predicted.shape[1], 1, device=predicted.device)
    return (predicted[:, first] != predicted[:, second]).double().mean(1)
