"""Accuracy, proper scores, and what averaging members gains."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mixmo.metrics.checks import check_probabilities, check_some, check_targets, zeros
from mixmo.metrics.description import Description, Descriptions, describe_share


class Scores(Metric):
    """Top-1, top-5, negative log-likelihood and Brier score.

    * ``accuracy``, ``accuracy_top5``: share of samples whose class is among the 1 or 5 most probable ones (all
      count where there are fewer); a tie for the last place goes to the lower class number.
    * ``nll``: mean of -log p(target), in nats; infinite where a target has probability 0.
    * ``brier``: mean of Σ_k (p_k - [k = target])², in [0, 2]; for two classes it is twice scikit-learn's
      ``brier_score_loss``, which counts one of them.
    * ``brier_per_class``: the same divided by K, as the paper's code has it.

    Example:
        >>> scores = Scores()
        >>> scores.update(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([0, 0]))
        >>> {name: round(value.item(), 3) for name, value in scores.compute().items()}
        {'accuracy': 0.5, 'accuracy_top5': 1.0, 'nll': 1.04, 'brier': 0.812, 'brier_per_class': 0.406}
    """

    descriptions: ClassVar[Descriptions] = {
        "accuracy": describe_share("Accuracy", "Share of images whose most probable class is the true one.", True),
        "accuracy_top5": describe_share(
            "Top-5 accuracy", "Share of images whose true class is among the five most probable.", True
        ),
        "nll": Description("NLL", "Mean negative log-probability of the true class, in nats (log loss).", False),
        "brier": Description(
            "Brier score", "Mean squared distance between probabilities and truth, summed over classes.", False
        ),
        "brier_per_class": Description("Brier score per class", "Brier score divided by the number of classes.", False),
    }
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", zeros(5), dist_reduce_fx="sum")
        self.add_state("count", zeros(), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, targets: Tensor, log_probabilities: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            probabilities: (B, K).
            targets: (B,) class numbers.
            log_probabilities: (B, K) for the negative log-likelihood, where they are known better than as logarithms
                of the probabilities, which can be 0.

        Raises:
            InputError: if they do not fit or are no probabilities; the row is named.
        """
        p = check_probabilities(probabilities)
        targets = check_targets(targets, *p.shape)
        logs = p.log() if log_probabilities is None else log_probabilities.double()
        own = p.gather(1, targets[:, None])
        place = (p > own).sum(1) + ((p == own) & (torch.arange(p.shape[1], device=p.device) < targets[:, None])).sum(1)
        brier = p.square().sum(1) - 2 * own[:, 0] + 1
        nll = -logs.gather(1, targets[:, None])[:, 0]
        values = [place < 1, place < 5, nll, brier, brier / p.shape[1]]
        self.total += torch.stack([value.double().sum() for value in values])
        self.count += len(p)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all batches.

        Raises:
            InputError: if there were none.
        """
        check_some(self.count)
        return dict(zip(self.descriptions, self.total / self.count, strict=True))


class EnsembleGain(Metric):
    """What averaging the members' probabilities gains over one of them, and what a perfect choice would.

    * ``member_mean_accuracy``, ``member_mean_nll``: the mean over members.
    * ``oracle_accuracy``: share of samples that at least one member gets right, the limit of any choice among them.
    * ``nll_gain``: ``member_mean_nll`` less the negative log-likelihood of the mean probabilities; never negative
      (Jensen), and larger the more members differ.

    Example:
        >>> gain = EnsembleGain()
        >>> gain.update(torch.tensor([[[0.9, 0.1], [0.4, 0.6]]]), torch.tensor([0]))
        >>> {name: round(value.item(), 3) for name, value in gain.compute().items()}
        {'member_mean_accuracy': 0.5, 'member_mean_nll': 0.511, 'oracle_accuracy': 1.0, 'nll_gain': 0.08}
    """

    descriptions: ClassVar[Descriptions] = {
        "member_mean_accuracy": describe_share(
            "Mean accuracy of members", "Accuracy of a member alone, mean over members.", True
        ),
        "member_mean_nll": Description("Mean NLL of members", "NLL of a member alone, mean over members.", False),
        "oracle_accuracy": describe_share(
            "Oracle accuracy", "Share of images that at least one member gets right.", True
        ),
        "nll_gain": Description(
            "NLL gain of averaging", "Mean NLL of members less the NLL of their mean probabilities.", True
        ),
    }
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", zeros(4), dist_reduce_fx="sum")
        self.add_state("count", zeros(), dist_reduce_fx="sum")

    def update(self, members: Tensor, targets: Tensor, log_members: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            members: (B, M, K) probabilities.
            targets: (B,) class numbers.
            log_members: (B, M, K), as in :class:`Scores`.
        """
        p = check_probabilities(members, axes=3)
        targets = check_targets(targets, len(p), p.shape[2])
        logs = p.log() if log_members is None else log_members.double()
        right = p.argmax(2) == targets[:, None]
        nll = -logs.gather(2, targets[:, None, None].expand(-1, p.shape[1], 1))[..., 0]
        together = nll.shape[1] * torch.ones_like(nll[:, 0])
        together = together.log() - (-nll).logsumexp(1)
        mean_nll = nll.mean(1)
        values = [right.double().mean(1), mean_nll, right.any(1), mean_nll - together]
        self.total += torch.stack([value.double().sum() for value in values])
        self.count += len(p)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all batches.

        Raises:
            InputError: if there were none.
        """
        check_some(self.count)
        return dict(zip(self.descriptions, self.total / self.count, strict=True))
