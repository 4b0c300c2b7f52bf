"""Diversity of members."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mixmo.errors import InputError
from mixmo.metrics.checks import check_probabilities, check_some, check_targets, zeros


class Diversity(Metric):
    """Diversity of M >= 2 members, each the mean over the M (M - 1) / 2 pairs.

    With n_11, n_10, n_01, n_00 the shares of samples that both, only the first, only the second and neither of two
    members gets right:

    * ``d_re`` = (n_10 + n_01) / n_00, the ratio of single to shared errors (Aksela 2003); for a pair without shared
      errors 2 (n_10 + n_01), the convention of the paper's code. The larger, the more diverse.
    * ``disagreement``: share of samples for which the two predict different classes.
    * ``q_statistic`` = (n_11 n_00 - n_10 n_01) / (n_11 n_00 + n_10 n_01) (Yule); 0 where it would divide by 0.
    * ``correlation`` of being right, the phi coefficient; 0 where one of the two is always or never right.
    * ``double_fault`` = n_00.
    * ``kappa``: Cohen's, of the predicted classes; 1 where both always predict one and the same class (NaN in
      scikit-learn).
    * ``kl``: mean of KL(p_i || p_j) over both orders, in nats; infinite where p_j is 0 and p_i is not.
    * ``cosine``: cosine of the angle between the two distributions, mean over samples.

    Args:
        num_classes: K.
        num_members: M.

    Raises:
        InputError: if M < 2.

    Example:
        >>> diversity = Diversity(num_classes=2, num_members=2)
        >>> members = torch.tensor([[[0.1, 0.9], [0.1, 0.9]], [[0.1, 0.9], [0.9, 0.1]], [[0.9, 0.1], [0.1, 0.9]]])
        >>> diversity.update(members, torch.tensor([0, 0, 0]))
        >>> found = diversity.compute()
        >>> round(found["d_re"].item(), 3), round(found["disagreement"].item(), 3)
        (2.0, 0.667)
    """

    full_state_update = False
    right: Tensor
    both_right: Tensor
    agree: Tensor
    predicted: Tensor
    kl: Tensor
    cosine: Tensor
    count: Tensor

    def __init__(self, num_classes: int, num_members: int, **options: Any) -> None:
        super().__init__(**options)
        if num_members < 2:
            raise InputError(f"diversity is measured between members, but there is {num_members}.")
        pairs = (num_members, num_members)
        self.add_state("right", zeros(num_members), dist_reduce_fx="sum")
        self.add_state("predicted", zeros(num_members, num_classes), dist_reduce_fx="sum")
        for name in ("both_right", "agree", "kl", "cosine"):
            self.add_state(name, zeros(*pairs), dist_reduce_fx="sum")
        self.add_state("count", zeros(), dist_reduce_fx="sum")

    def update(self, members: Tensor, targets: Tensor, log_members: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            members: (B, M, K) probabilities.
            targets: (B,) class numbers.
            log_members: (B, M, K), where they are known better than as logarithms of the probabilities.

        Raises:
            InputError: if they do not fit or are no probabilities; the row is named.
        """
        p = check_probabilities(members, axes=3)
        if p.shape[1:] != self.predicted.shape:
            raise InputError(
                f"probabilities of shape {tuple(p.shape)} do not fit (B, M, K) with M, K = "
                f"{tuple(self.predicted.shape)}."
            )
        targets = check_targets(targets, len(p), p.shape[2])
        predictions = p.argmax(2)
        right = (predictions == targets[:, None]).double()
        self.right += right.sum(0)
        self.both_right += right.T @ right
        self.agree += (predictions[:, :, None] == predictions[:, None]).double().sum(0)
        ones = torch.ones_like(predictions, dtype=torch.float64)
        self.predicted.scatter_add_(1, predictions.T, ones.T)
        if log_members is None:
            negative_entropy = torch.special.xlogy(p, p).sum(2)
            cross = torch.special.xlogy(p[:, :, None], p[:, None]).sum(3)
        else:
            logs = log_members.double()
            negative_entropy, cross = (p * logs).sum(2), p @ logs.transpose(1, 2)
        self.kl += (negative_entropy[:, :, None] - cross).sum(0)
        unit = p / p.norm(dim=2, keepdim=True)
        self.cosine += (unit @ unit.transpose(1, 2)).sum(0)
        self.count += len(p)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all batches.

        Raises:
            InputError: if there were none.
        """
        check_some(self.count)
        i, j = torch.triu_indices(len(self.right), len(self.right), 1, device=self.right.device)
        n = self.count
        n11 = self.both_right[i, j] / n
        first, second = self.right[i] / n, self.right[j] / n
        n10, n01, n00 = first - n11, second - n11, 1 - first - second + n11
        n00 = n00.where(n00 * n > 0.5, 0.0)  # counts are whole: the rest is rounding
        single, same, crossed = n10 + n01, n11 * n00, n10 * n01
        chance = (self.predicted[i] * self.predicted[j]).sum(1) / n**2
        agree = self.agree[i, j] / n
        spread = (first * (1 - first) * second * (1 - second)).sqrt()
        found = {
            "d_re": _ratio(single, n00, otherwise=2 * single),
            "disagreement": 1 - agree,
            "q_statistic": _ratio(same - crossed, same + crossed),
            "correlation": _ratio(n11 - first * second, spread),
            "double_fault": n00,
            "kappa": _ratio(agree - chance, 1 - chance, otherwise=torch.ones_like(chance)),
            "kl": (self.kl[i, j] + self.kl[j, i]) / (2 * n),
            "cosine": self.cosine[i, j] / n,
        }
        return {name: values.mean() for name, values in found.items()}


def _ratio(above: Tensor, below: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """Return above / below, and ``otherwise`` (0) where below is 0 up to rounding."""
    defined = below.abs() > 1e-12
    return torch.where(defined, above / below.where(defined, 1.0), 0.0 if otherwise is None else otherwise)
