"""Metrics of images with any number of labels, and thresholds chosen on validation images."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import Metric

from mixmo.errors import InputError
from mixmo.metrics.calibration_errors import bin_gaps, expected_error
from mixmo.metrics.checks import check_logits, gather_state
from mixmo.metrics.description import Description, Descriptions, describe_share


class MultiLabelScores(Metric):
    """Ranking, decisions and probabilities of each class's presence, p_k = sigmoid(logit_k).

    A class is predicted where p_k is above its threshold. With true and false positives and false negatives TP, FP, FN:

    * ``map``: mean average precision, the mean over classes of Σ_i (R_i - R_(i-1)) P_i, with precision P_i and recall
      R_i among the images of at least the i-th largest probability; classes that no image has are left out.
    * ``f1_micro``: 2 TP / (2 TP + FP + FN) of all labels together; ``f1_macro``: its mean over classes, without those
      that are neither present nor predicted.
    * ``exact_match``: share of images all of whose labels are right; ``hamming_loss``: share of labels that are wrong.
    * ``bce``: binary cross-entropy, the mean over images and classes of -log p(presence or absence), in nats.
    * ``label_brier``: the mean of (p_k - y_k)² over images and classes.
    * ``label_ece``: the mean gap between p_k and how often the class is present, over 15 bins of equal width into which
      the probabilities of all images and classes fall.

    Args:
        thresholds: One for all classes, or (K,).

    Example:
        >>> scores = MultiLabelScores()
        >>> scores.update(torch.tensor([[2.0, -1.0], [1.0, -2.0]]), torch.tensor([[1, 0], [0, 1]]))
        >>> {name: round(value.item(), 3) for name, value in scores.compute().items() if name != "bce"}
        {'map': 0.75, 'f1_micro': 0.5, 'f1_macro': 0.333, 'exact_match': 0.5, 'hamming_loss': 0.5, ...}
    """

    descriptions: ClassVar[Descriptions] = {
        "map": describe_share(
            "mAP", "Mean over classes of the average precision, the area under the precision–recall curve.", True
        ),
        "f1_micro": describe_share("Micro F1", "Harmonic mean of precision and recall of all labels together.", True),
        "f1_macro": describe_share("Macro F1", "Mean over classes of the F1 of each.", True),
        "exact_match": describe_share("Exact match", "Share of images all of whose labels are right.", True),
        "hamming_loss": describe_share("Hamming loss", "Share of labels that are wrong.", False),
        "bce": Description(
            "BCE",
            "Binary cross-entropy: mean negative log-probability of a class's presence or absence, in nats.",
            False,
        ),
        "label_brier": Description(
            "Brier score per label", "Mean squared distance between the probability of a class and its presence.", False
        ),
        "label_ece": describe_share(
            "ECE per label", "Mean gap between the probability of a class and how often it is present, 15 bins.", False
        ),
    }
    full_state_update = False
    logits: list[Tensor]
    targets: list[Tensor]

    def __init__(self, thresholds: Tensor | float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.thresholds = torch.as_tensor(thresholds)
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch of logits (B, K), log p_k / (1 - p_k), and targets (B, K), 0 or 1."""
        self.targets.append(check_label_sets(logits[:, None], targets))
        self.logits.append(logits)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all batches."""
        logits, targets = gather_state(self.logits).double(), gather_state(self.targets)
        p, present = logits.sigmoid(), targets.bool()
        predicted = p > self.thresholds.to(p)
        right = predicted == present
        counts = [each.sum(0).double() for each in (predicted & present, predicted, present)]
        return {
            "map": average_precisions(logits, targets).nanmean(),
            "f1_micro": f1_scores(*(each.sum() for each in counts)),
            "f1_macro": f1_scores(*counts).nanmean(),
            "exact_match": right.all(1).double().mean(),
            "hamming_loss": 1 - right.double().mean(),
            "bce": binary_cross_entropy_with_logits(logits, targets.double()),
            "label_brier": (p - targets).square().mean(),
            "label_ece": expected_error(*bin_gaps(p.flatten(), targets.flatten())),
        }


def check_label_sets(logits: Tensor, targets: Tensor) -> Tensor:
    """Return targets (N, K) as uint8; refuse logits (N, M, K) and targets that do not fit, or are not finite."""
    check_logits(logits, torch.zeros(len(logits), dtype=torch.int64))
    if targets.shape != (len(logits), logits.shape[2]):
        raise InputError(
            f"targets of shape {tuple(targets.shape)} do not fit logits {tuple(logits.shape)}; they are "
            f"{(len(logits), logits.shape[2])}, 0 or 1 for each class of each image."
        )
    bad = ((targets != 0) & (targets != 1)).any(1).nonzero()
    if len(bad):
        raise InputError(f"targets in row {int(bad[0])} are not all 0 or 1, the absence or presence of each class.")
    return targets.to(torch.uint8)


def average_precisions(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the average precision of each class, (K,) float64; NaN for those that no image has.

    Example:
        >>> average_precisions(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[0, 0], [1, 0]])).tolist()
        [0.5, nan]
    """
    truth, scores = targets.cpu().numpy(), logits.double().cpu().numpy()
    found = [
        average_precision_score(own, score) if own.any() else np.nan
        for own, score in zip(truth.T, scores.T, strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64)


def f1_scores(hits: Tensor, predicted: Tensor, present: Tensor) -> Tensor:
    """Return F1 = 2 TP / (predicted + present); NaN for a class that is neither."""
    return 2 * hits / (predicted + present)


def best_thresholds(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return for each class the threshold of probability (N, K) at which F1 is largest, (K,) float64.

    It lies half way between two probabilities of the images; of equally good ones it is the highest. A class
    that no image has keeps 0.5. Never choose thresholds on the data that is then evaluated.

    Example:
        >>> p = torch.tensor([[0.75, 0.1], [0.25, 0.2], [0.125, 0.3]])
        >>> best_thresholds(p, torch.tensor([[1, 0], [1, 0], [0, 0]])).tolist()
        [0.1875, 0.5]
    """
    p, order = probabilities.double().sort(0, descending=True)
    hits = targets.gather(0, order).double().cumsum(0)
    count = torch.arange(1, len(p) + 1, dtype=torch.float64, device=p.device)[:, None]
    below = torch.cat([p[1:], p.new_zeros(1, p.shape[1])])
    f1 = torch.where(p > below, f1_scores(hits, count, hits[-1]), -1.0)  # equal probabilities stay together
    best = f1.argmax(0, keepdim=True)
    found = (p.gather(0, best) + below.gather(0, best))[0] / 2
    return torch.where(hits[-1] > 0, found, 0.5)


def as_binary(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return labels (N, K) as problems of two classes, absent and present: logits (N * K, 2) and targets (N * K,).

    The softmax of (0, z) is the sigmoid of z, so methods for two classes apply to each label.
    """
    present = logits.flatten()
    return torch.stack([torch.zeros_like(present), present], 1), targets.flatten().long()
