"""Out-of-distribution (OOD) detection."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torchmetrics import Metric

from mixmo.errors import InputError
from mixmo.metrics.checks import check_logits, gather_state
from mixmo.metrics.chunks import in_chunks
from mixmo.metrics.description import Description, Descriptions, describe_share

ROUNDING = 1e-12
"""Mutual information below this is rounding, and would rank images on which members agree."""

SCORES = {
    "max_probability": "Maximum probability",
    "entropy": "Predictive entropy",
    "mutual_information": "Mutual information",
    "energy": "Energy",
}
"""The scores that separate OOD images from test images, and their names in words."""


class Uncertainty(NamedTuple):
    """The uncertainty of N predictions of M members, in nats.

    Attributes:
        mean: (N, K) the members' mean probabilities.
        total: (N,) the entropy of the mean: all uncertainty.
        aleatoric: (N,) the mean entropy of the members: what they agree on, ambiguous images.
        epistemic: (N,) the rest, the mutual information of prediction and member: what they disagree on.
    """

    mean: Tensor
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def decompose_uncertainty(log_members: Tensor) -> Uncertainty:
    """Return the uncertainty of members' log-probabilities (N, M, K), in their precision."""
    members = log_members.exp()
    mean = members.mean(1)
    total = -torch.special.xlogy(mean, mean).sum(1)
    aleatoric = -(members * log_members).sum(2).mean(1)
    return Uncertainty(mean, total, aleatoric, (total - aleatoric).clamp(min=0))


def ood_scores(logits: Tensor) -> dict[str, Tensor]:
    """Return scores (N,) of logits (N, M, K) in float64 that are larger the less an image looks like the training set.

    * ``max_probability``: minus the largest probability of the members' mean distribution.
    * ``entropy``: of that distribution, in nats.
    * ``mutual_information`` between prediction and member: that entropy minus the members' mean entropy, their
      disagreement; 0 for one member, and where it is below 1e-12, which is rounding.
    * ``energy``: minus the log of the summed exponentials of the mean logits (Liu et al. 2020).

    Example:
        >>> scores = ood_scores(torch.tensor([[[9.0, 0.0], [0.0, 9.0]]]))
        >>> round(scores["entropy"].item(), 3), round(scores["mutual_information"].item(), 3)
        (0.693, 0.692)
    """
    parts = [_scores(part) for (part,) in in_chunks(logits)]
    return {name: torch.cat([part[name] for part in parts]) for name in SCORES}


def _scores(logits: Tensor) -> dict[str, Tensor]:
    found = decompose_uncertainty(logits.double().log_softmax(2))
    return {
        "max_probability": -found.mean.amax(1),
        "entropy": found.total,
        "mutual_information": found.epistemic.where(found.epistemic > ROUNDING, 0.0),
        "energy": -logits.double().mean(1).logsumexp(1),
    }


class OutOfDistribution(Metric):
    """How well scores separate out-of-distribution images, the positive class, from test images.

    For each score of :func:`ood_scores`, N test images and P out-of-distribution images:

    * ``…/auroc``: the probability that an out-of-distribution image has a larger score than a test image; equal scores
      count one half.
    * ``…/aupr``: the average precision, Σ (recall_i - recall_(i-1)) * precision_i over the distinct scores, the largest
      first.
    * ``…/fpr95``: the share of test images whose score is at least the threshold, the largest score at which at least
      ⌈0.95 P⌉ of the P are found.

    Example:
        >>> ood = OutOfDistribution()
        >>> ood.update(torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]]), out=False)
        >>> ood.update(torch.tensor([[[0.1, 0.0]]]), out=True)
        >>> {name: value.item() for name, value in ood.compute().items() if name.startswith("entropy")}
        {'entropy/auroc': 1.0, 'entropy/aupr': 1.0, 'entropy/fpr95': 0.0}
    """

    descriptions: ClassVar[Descriptions] = {
        "auroc": Description("AUROC", "Probability that an OOD image has the higher score; 0.5 is chance.", True),
        "aupr": Description("AUPR", "Area under the precision–recall curve, OOD images being positive.", True),
        "fpr95": describe_share(
            "FPR95", "Share of test images taken for OOD where 95 % of OOD images are found.", False
        ),
    }
    full_state_update = False
    scores: list[Tensor]
    out: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("out", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, out: bool) -> None:
        """Add a batch of logits (B, M, K), all of the test set or all of another dataset (``out``)."""
        check_logits(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        self.scores.append(torch.stack([*ood_scores(logits).values()], 1))
        self.out.append(torch.full((len(logits),), out, device=logits.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all batches; refuse images of one kind only."""
        scores, out = gather_state(self.scores), gather_state(self.out).cpu().numpy()
        if out.all() or not out.any():
            raise InputError("out-of-distribution metrics need images of both kinds, but all are of one.")
        found = {}
        for name, column in zip(SCORES, scores.T.cpu().numpy(), strict=True):
            found[f"{name}/auroc"] = roc_auc_score(out, column)
            found[f"{name}/aupr"] = average_precision_score(out, column)
            found[f"{name}/fpr95"] = false_positive_rate(column[out], column[~out])
        return {name: scores.new_tensor(float(value)) for name, value in found.items()}


def false_positive_rate(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the share of negatives at or above the largest threshold that finds 95 % of the positives.

    These are counted exactly, so that 19 of 20 are 95 %.
    """
    needed = -(-len(positive) * 95 // 100)
    threshold = np.sort(positive)[len(positive) - needed]
    return float((negative >= threshold).mean())
