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
"""Mutual information below this is rounding error, which must not rank images on which members agree."""

SCORES = {
    "max_probability": "Maximum probability",
    "entropy": "Predictive entropy",
    "mutual_information": "Mutual information",
    "energy": "Energy",
}
"""Scores that separate OOD images from test images, with their names."""


class Uncertainty(NamedTuple):
    """The uncertainty of N predictions of M members, in nats.

    Attributes:
        mean: (N, K) the members' mean probabilities.
        total: (N,) the entropy of the mean.
        aleatoric: (N,) the members' mean entropy: ambiguity that they agree on.
        epistemic: (N,) the difference, the mutual information of prediction and member: their disagreement.
    """

    mean: Tensor
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def decompose_uncertainty(log_members: Tensor) -> Uncertainty:
    """Decompose the uncertainty of members' log-probabilities (N, M, K), in their precision."""
    members = log_members.exp()
    mean = members.mean(1)
    total = -torch.special.xlogy(mean, mean).sum(1)
    aleatoric = -(members * log_members).sum(2).mean(1)
    return Uncertainty(mean, total, aleatoric, (total - aleatoric).clamp(min=0))


def ood_scores(logits: Tensor) -> dict[str, Tensor]:
    """Return OOD scores (N,) of logits (N, M, K) in float64; larger means less like the training set.

    * ``max_probability``: minus the largest of the members' mean probabilities.
    * ``entropy``: the entropy of the mean probabilities, in nats.
    * ``mutual_information`` between prediction and member: that entropy minus the members' mean entropy; 0 for one
      member, and below 1e-12, which is rounding error.
    * ``energy``: minus the logsumexp of the mean logits (Liu et al. 2020).

    Example:
        >>> scores = ood_scores(torch.tensor([[[9.0, 0.0], [0.0, 9.0]]]))
        >>> round(scores["entropy"].item(), 3), round(scores["mutual_information"].item(), 3)
        (0.693, 0.692)
    """
    parts = [_scores(part) for (part,) in in_chunks(logits)]
    return {name: torch.cat([part[name] for part in parts]) for name in SCORES}


def _scores(logits: Tensor) -> dict[str, Tensor]:
    parts = decompose_uncertainty(logits.double().log_softmax(2))
    return {
        "max_probability": -parts.mean.amax(1),
        "entropy": parts.total,
        "mutual_information": parts.epistemic.where(parts.epistemic > ROUNDING, 0.0),
        "energy": -logits.double().mean(1).logsumexp(1),
    }


class OutOfDistribution(Metric):
    """How well scores separate P out-of-distribution images, the positive class, from test images.

    For each score of :func:`ood_scores`:

    * ``…/auroc``: probability that an out-of-distribution image has a higher score than a test image; ties count one
      half.
    * ``…/aupr``: average precision, Σ (recall_i - recall_(i-1)) * precision_i over the distinct scores in descending
      order.
    * ``…/fpr95``: share of test images at or above the largest threshold that detects at least ⌈0.95 P⌉ of the P.

    Example:
        >>> ood = OutOfDistribution()
        >>> ood.update(torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]]), out=False)
        >>> ood.update(torch.tensor([[[0.1, 0.0]]]), out=True)
        >>> {name: value.item() for name, value in ood.compute().items() if name.startswith("entropy")}
        {'entropy/auroc': 1.0, 'entropy/aupr': 1.0, 'entropy/fpr95': 0.0}
    """

    descriptions: ClassVar[Descriptions] = {
        "auroc": Description("AUROC", "Probability that an OOD image scores above a test image; 0.5 is chance.", True),
        "aupr": Description("AUPR", "Area under the precision–recall curve; OOD images are positive.", True),
        "fpr95": describe_share(
            "FPR95", "Share of test images mistaken for OOD at the threshold that detects 95 % of OOD images.", False
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
        """Add a batch of logits (B, M, K), either all of test images or all of out-of-distribution images (``out``)."""
        check_logits(logits)
        self.scores.append(torch.stack([*ood_scores(logits).values()], 1))
        self.out.append(torch.full((len(logits),), out, device=logits.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics over all batches."""
        scores, out = gather_state(self.scores), gather_state(self.out).cpu().numpy()
        if out.all() or not out.any():
            raise InputError("OOD metrics need test images and OOD images; add both with update().")
        metrics = {}
        for name, column in zip(SCORES, scores.T.cpu().numpy(), strict=True):
            metrics[f"{name}/auroc"] = roc_auc_score(out, column)
            metrics[f"{name}/aupr"] = average_precision_score(out, column)
            metrics[f"{name}/fpr95"] = false_positive_rate(column[out], column[~out])
        return {name: scores.new_tensor(float(value)) for name, value in metrics.items()}


def false_positive_rate(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the share of negatives at or above the largest threshold that detects 95 % of the positives.

    The count is exact: 19 of 20 are 95 %.
    """
    needed = -(-len(positive) * 95 // 100)
    threshold = np.sort(positive)[len(positive) - needed]
    return float((negative >= threshold).mean())
