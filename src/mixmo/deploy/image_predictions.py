"""Predictions for images: class, calibrated confidence, uncertainty, conformal set, deferral; or several labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixmo.evaluation.calibration import Calibration, LabelCalibration
from mixmo.metrics.conformal import Sets, prediction_sets
from mixmo.metrics.ood import decompose_uncertainty

TOP = 5


@dataclass(frozen=True)
class ImagePredictions:
    """Predictions for N images, K classes, by M members.

    Attributes:
        names: The images' names, or their numbers.
        classes: The K class names.
        probabilities: (N, K), of the average of the members' logits; calibrated where there is a calibration.
        probability: (N,) the largest of them, before any calibration.
        confidence: (N,) the largest of them.
        labels: (N,) its class number.
        total: (N,) entropy of the members' mean probabilities, in nats: all uncertainty.
        aleatoric: (N,) mean entropy of the members: what they agree on, ambiguous images.
        epistemic: (N,) the rest, the mutual information: what they disagree on, unfamiliar images.
        agreement: (N,) share of the members that predict the same class; NaN, as the two before, without separate
            members: for a single network, or an exported one that gives only their average.
        sets: (N, K) classes in the conformal sets; ``None`` without a calibration.
        defer: (N,) whether the confidence is too low for the allowed error rate; ``None`` without a calibration.
        logits: (N, K), the average of the members', divided by the temperature where there is a calibration:
            ``probabilities`` are their softmax.
        features: (N, D) before the heads, which the members share; ``None`` where they were not asked for.

    Example:
        >>> found = interpret_logits(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), ["a.png"], ["cat", "dog"])
        >>> found.classes[found.labels[0]], round(found.probability.item(), 3), found.agreement.item()
        ('cat', 0.622, 0.5)
        >>> bool(torch.allclose(found.total, found.aleatoric + found.epistemic))
        True
        >>> found.sets is None  # there is no calibration
        True
    """

    names: Sequence[str]
    classes: Sequence[str]
    probabilities: Tensor
    probability: Tensor
    confidence: Tensor
    labels: Tensor
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    agreement: Tensor
    sets: Tensor | None
    defer: Tensor | None
    logits: Tensor
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each image, as ``mixmo predict`` writes it; ``None`` is unknown."""
        top, order = self.probabilities.topk(min(TOP, len(self.classes)), 1)
        for index, name in enumerate(self.names):
            row: dict[str, Any] = {
                "file": name,
                "class": self.classes[int(self.labels[index])],
                "probability": _round(self.probability[index]),
                "confidence": None if self.sets is None else _round(self.confidence[index]),
                "top5": {self.classes[int(k)]: _round(p) for k, p in zip(order[index], top[index], strict=True)},
            }
            for key in ("total", "aleatoric", "epistemic", "agreement"):
                row[key] = _round(getattr(self, key)[index])
            row["set"] = None if self.sets is None else [self.classes[int(k)] for k in self.sets[index].nonzero()[:, 0]]
            row["defer"] = None if self.defer is None else bool(self.defer[index])
            yield row


@dataclass(frozen=True)
class LabelPredictions:
    """Predictions for N images, each of which may have several of K classes, or none.

    Attributes:
        names: The images' names, or their numbers.
        classes: The K class names.
        probabilities: (N, K), that each class is present: sigmoids of the average of the members' logits; calibrated
            where there is a calibration.
        present: (N, K) whether a class is predicted: its probability is above its threshold.
        thresholds: (K,), those of the validation images, or 0.5.

    Example:
        >>> found = interpret_labels(torch.tensor([[[2.0, -1.0, 1.0]]]), ["a.png"], ["cat", "dog", "owl"])
        >>> found.labels, found.probabilities.round(decimals=2).tolist()
        ([['cat', 'owl']], [[0.88, 0.27, 0.73]])
    """

    names: Sequence[str]
    classes: Sequence[str]
    probabilities: Tensor
    present: Tensor
    thresholds: Tensor

    def __len__(self) -> int:
        return len(self.present)

    @property
    def labels(self) -> list[list[str]]:
        """The names of the classes that are predicted for each image."""
        return [[self.classes[int(k)] for k in row.nonzero()[:, 0]] for row in self.present]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each image, as ``mixmo predict`` writes it."""
        for name, labels, p in zip(self.names, self.labels, self.probabilities, strict=True):
            shares = {label: _round(share) for label, share in zip(self.classes, p, strict=True)}
            yield {"file": name, "labels": labels, "probabilities": shares}


def interpret_labels(
    logits: Tensor, names: Sequence[str], classes: Sequence[str], calibration: LabelCalibration | None = None
) -> LabelPredictions:
    """Return predictions from the members' logits (N, M, K) for images with several labels.

    Example:
        >>> found = interpret_labels(torch.tensor([[[2.0, -1.0], [0.0, 0.0]]]), ["a.png"], ["cat", "dog"])
        >>> next(found.rows())
        {'file': 'a.png', 'labels': ['cat'], 'probabilities': {'cat': 0.731059, 'dog': 0.377541}}
    """
    if calibration is None:
        calibration = LabelCalibration(1.0, torch.full((len(classes),), 0.5, dtype=torch.float64))
    p = calibration.probabilities(logits.double().mean(1))
    return LabelPredictions(names, classes, p, p > calibration.thresholds, calibration.thresholds)


def _round(value: Tensor) -> float | None:
    """Return a number as it is written; ``None`` for NaN."""
    return None if math.isnan(number := value.item()) else round(number, 6)


def interpret_logits(
    logits: Tensor,
    names: Sequence[str],
    classes: Sequence[str],
    calibration: Calibration | None = None,
    coverage: float = 0.95,
    max_error_rate: float = 0.05,
    sets: Sets = "marginal",
    features: Tensor | None = None,
) -> ImagePredictions:
    """Return predictions from the members' logits (N, M, K), and features (N, D) where they were asked for.

    ``coverage``, ``max_error_rate`` and ``sets`` are those of :class:`mixmo.Predictor`.

    Example:
        >>> found = interpret_logits(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), ["a.png"], ["cat", "dog"])
        >>> row = next(found.rows())
        >>> row["class"], row["probability"], row["agreement"], row["confidence"], row["set"]
        ('cat', 0.622459, 0.5, None, None)
    """
    _, total, aleatoric, epistemic = decompose_uncertainty(logits.double().log_softmax(2))
    average = logits.double().mean(1)
    scaled = average if calibration is None else average / calibration.temperature
    probabilities = scaled.softmax(1)
    confidence, labels = probabilities.max(1)
    agreement = (logits.argmax(2) == labels[:, None]).double().mean(1)
    if logits.shape[1] == 1:  # nothing is known of members
        aleatoric, epistemic, agreement = torch.full((3, len(labels)), math.nan, dtype=torch.double)
    chosen = defer = None
    if calibration is not None:
        chosen = prediction_sets(probabilities, calibration.set_thresholds(coverage, len(classes), sets), sets)
        threshold = calibration.confidence_threshold(max_error_rate)  # infinite if no threshold is sure enough
        defer = confidence < threshold
    probability = average.softmax(1).gather(1, labels[:, None])[:, 0]
    return ImagePredictions(
        names, classes, probabilities, probability, confidence, labels, total, aleatoric, epistemic, agreement, chosen,
        defer, scaled, features,
    )  # fmt: skip
