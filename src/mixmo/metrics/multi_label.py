"""Multi-label metrics, and thresholds chosen on validation images."""

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
    """Multi-label metrics, with p_k = sigmoid(logit_k) the probability that class k is present.

    A class is predicted if p_k exceeds its threshold. TP, FP and FN are true positives, false positives and false
    negatives.

    * ``map``: mean average precision, the mean over classes of Σ_i (R_i - R_(i-1)) P_i, with precision P_i and recall
      R_i among the images of at least the i-th largest probability, without classes that no image has.
    * ``f1_micro``: 2 TP / (2 TP + FP + FN) over all labels; ``f1_macro``: its mean over classes, without those neither
      present nor predicted.
    * ``exact_match``: share of images whose labels are all correct; ``hamming_loss``: share of labels that are wrong.
    * ``bce``: binary cross-entropy, the mean over images and classes of -log p(presence or absence), in nats.
    * ``label_brier``: the mean of (p_k - y_k)² over images and classes.
    * ``label_ece``: the expected calibration error of p_k against y_k, with all images and classes in 15 bins.

    Args:
        thresholds: A common threshold, or (K,).

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
        "f1_micro": describe_share("Micro F1", "Harmonic mean of precision and recall over all labels.", True),
        "f1_macro": describe_share("Macro F1", "F1 of each class, mean over classes.", True),
        "exact_match": describe_share("Exact match", "Share of images whose labels are all correct.", True),
        "hamming_loss": describe_share("Hamming loss", "Share of labels that are wrong.", False),
        "bce": Description(
            "BCE",
            "Binary cross-entropy: mean negative log-probability of a class's presence or absence, in nats.",
            False,
        ),
        "label_brier": Description(
            "Brier score per label", "Mean squared difference between a class's probability and presence (0, 1).", False
        ),
        "label_ece": describe_share(
            "ECE per label", "Mean gap between a class's probability and its frequency, over 15 bins.", False
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
        """Return the metrics over all batches."""
        logits, targets = gather_state(self.logits).double(), gather_state(self.targets)
        p, present = logits.sigmoid(), targets.bool()
        predicted = p > self.thresholds.to(p)
        right = predicted == present
        counts = [labels.sum(0).double() for labels in (predicted & present, predicted, present)]
        return {
            "map": average_precisions(logits, targets).nanmean(),
            "f1_micro": f1_scores(*(count.sum() for count in counts)),
            "f1_macro": f1_scores(*counts).nanmean(),
            "exact_match": right.all(1).double().mean(),
            "hamming_loss": 1 - right.double().mean(),
            "bce": binary_cross_entropy_with_logits(logits, targets.double()),
            "label_brier": (p - targets).square().mean(),
            "label_ece": expected_error(*bin_gaps(p.flatten(), targets.flatten())),
        }


def check_label_sets(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the labels (N, K), 0 or 1, of logits (N, M, K) as uint8, after checking both."""
    check_logits(logits)
    if targets.shape != (len(logits), logits.shape[2]):
        raise InputError(
            f"targets have shape {tuple(targets.shape)}; for logits {tuple(logits.shape)} they must be "
            f"{(len(logits), logits.shape[2])}, 0 or 1 for each class of each image."
        )
    bad = ((targets != 0) & (targets != 1)).any(1).nonzero()
    if len(bad):
        raise InputError(f"targets in row {int(bad[0])} are not all 0 or 1, the absence or presence of each class.")
    return targets.to(torch.uint8)


def average_precisions(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the average precision of each class, (K,) float64; NaN for classes that no image has.

    Example:
        >>> average_precisions(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[0, 0], [1, 0]])).tolist()
        [0.5, nan]
    """
    truth, scores = targets.cpu().numpy(), logits.double().cpu().numpy()
    precisions = [
        average_precision_score(present, score) if present.any() else np.nan
        for present, score in zip(truth.T, scores.T, strict=True)
    ]
    return torch.tensor(precisions, dtype=torch.float64)


def f1_scores(hits: Tensor, predicted: Tensor, present: Tensor) -> Tensor:
    """Return F1 = 2 TP / (predicted + present); NaN for a class neither predicted nor present."""
    return 2 * hits / (predicted + present)


def best_thresholds(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return the threshold of each class's probabilities (N, K) that maximises its F1, (K,) float64.

    Thresholds are midpoints between two images' probabilities, the highest among equally good ones; 0.5 for a class
    that no image has. Do not choose them on the data that they are then evaluated on.

    Example:
        >>> p = torch.tensor([[0.75, 0.1], [0.25, 0.2], [0.125, 0.3]])
        >>> best_thresholds(p, torch.tensor([[1, 0], [1, 0], [0, 0]])).tolist()
        [0.1875, 0.5]
    """
    p, order = probabilities.double().sort(0, descending=True)
    hits = targets.gather(0, order).double().cumsum(0)
    count = torch.arange(1, len(p) + 1, dtype=torch.float64, device=p.device)[:, None]
    below = torch.cat([p[1:], p.new_zeros(1, p.shape[1])])
    f1 = torch.where(p > below, f1_scores(hits, count, hits[-1]), -1.0)  # no threshold splits equal probabilities
    best = f1.argmax(0, keepdim=True)
    midpoints = (p.gather(0, best) + below.gather(0, best))[0] / 2
    return torch.where(hits[-1] > 0, midpoints, 0.5)


def as_binary(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return labels (N, K) as two-class problems, absent or present: logits (N * K, 2) and targets (N * K,).

    The softmax of (0, z) is (1 - sigmoid(z), sigmoid(z)).
    """
    present = logits.flatten()
    return torch.stack([torch.zeros_like(present), present], 1), targets.flatten().long()
