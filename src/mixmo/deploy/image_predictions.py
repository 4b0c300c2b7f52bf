"""Predictions for images: class, calibrated confidence, uncertainty, conformal set, deferral; or several labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixmo.evaluation.calibration import ClassCalibration, LabelCalibration
from mixmo.metrics.conformal import Sets, prediction_sets
from mixmo.metrics.ood import decompose_uncertainty

TOP = 5


@dataclass(frozen=True)
class ImagePredictions:
    """Predictions for N images, K classes, by M members.

    Attributes:
        names: Names of the images, or their numbers.
        classes: The K class names.
        probabilities: (N, K), softmax of ``logits``.
        probability: (N,) uncalibrated probability of the predicted class.
        confidence: (N,) largest of ``probabilities``.
        labels: (N,) predicted class numbers.
        total: (N,) total uncertainty: entropy of the members' mean probabilities, in nats.
        aleatoric: (N,) mean entropy of the members, high for ambiguous images.
        epistemic: (N,) mutual information, ``total - aleatoric``: disagreement, high for unfamiliar images.
        agreement: (N,) share of members that predict the same class. It, ``aleatoric`` and ``epistemic`` are NaN
            without separate members: for a single network, or an export of the members' average.
        sets: (N, K) classes in the conformal sets; ``None`` without a calibration.
        defer: (N,) whether the confidence is too low for the allowed error rate; ``None`` without a calibration.
        logits: (N, K), mean of the members' logits, divided by the temperature of a calibration, if any.
        features: (N, D) before the heads, shared by the members; ``None`` unless requested.

    Example:
        >>> predictions = interpret_logits(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), ["a.png"], ["cat", "dog"])
        >>> predictions.classes[predictions.labels[0]], predictions.agreement.item()
        ('cat', 0.5)
        >>> bool(torch.allclose(predictions.total, predictions.aleatoric + predictions.epistemic))
        True
        >>> predictions.sets is None  # there is no calibration
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
        """Yield a row for each image, as written by ``mixmo predict``; ``None`` where a value is unavailable."""
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
    """Multi-label predictions for N images: each has any number of K classes.

    Attributes:
        names: Names of the images, or their numbers.
        classes: The K class names.
        probabilities: (N, K), that each class is present: sigmoids of the members' mean logits, calibrated if there is
            a calibration.
        present: (N, K) whether a class is predicted: its probability is above its threshold.
        thresholds: (K,), fitted on validation images, else 0.5.

    Example:
        >>> predictions = interpret_labels(torch.tensor([[[2.0, -1.0, 1.0]]]), ["a.png"], ["cat", "dog", "owl"])
        >>> predictions.labels, predictions.probabilities.round(decimals=2).tolist()
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
        """The names of the predicted classes of each image."""
        return [[self.classes[int(k)] for k in row.nonzero()[:, 0]] for row in self.present]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each image, as written by ``mixmo predict``."""
        for name, labels, values in zip(self.names, self.labels, self.probabilities, strict=True):
            probabilities = {label: _round(p) for label, p in zip(self.classes, values, strict=True)}
            yield {"file": name, "labels": labels, "probabilities": probabilities}


def interpret_labels(
    logits: Tensor, names: Sequence[str], classes: Sequence[str], calibration: LabelCalibration | None = None
) -> LabelPredictions:
    """Turn the members' logits (N, M, K) into multi-label predictions.

    Example:
        >>> predictions = interpret_labels(torch.tensor([[[2.0, -1.0], [0.0, 0.0]]]), ["a.png"], ["cat", "dog"])
        >>> next(predictions.rows())
        {'file': 'a.png', 'labels': ['cat'], 'probabilities': {'cat': 0.731059, 'dog': 0.377541}}
    """
    if calibration is None:
        calibration = LabelCalibration(1.0, torch.full((len(classes),), 0.5, dtype=torch.float64))
    p = calibration.probabilities(logits.double().mean(1))
    return LabelPredictions(names, classes, p, p > calibration.thresholds, calibration.thresholds)


def _round(value: Tensor) -> float | None:
    """Round a number for output; ``None`` for NaN."""
    return None if math.isnan(number := value.item()) else round(number, 6)


def interpret_logits(
    logits: Tensor,
    names: Sequence[str],
    classes: Sequence[str],
    calibration: ClassCalibration | None = None,
    coverage: float = 0.95,
    max_error_rate: float = 0.05,
    sets: Sets = "marginal",
    features: Tensor | None = None,
) -> ImagePredictions:
    """Turn the members' logits (N, M, K) into predictions; the options are those of :class:`mixmo.Predictor`.

    Example:
        >>> predictions = interpret_logits(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), ["a.png"], ["cat", "dog"])
        >>> row = next(predictions.rows())
        >>> row["class"], row["probability"], row["agreement"], row["confidence"], row["set"]
        ('cat', 0.622459, 0.5, None, None)
    """
    _, total, aleatoric, epistemic = decompose_uncertainty(logits.double().log_softmax(2))
    average = logits.double().mean(1)
    scaled = average if calibration is None else average / calibration.temperature
    probabilities = scaled.softmax(1)
    confidence, labels = probabilities.max(1)
    agreement = (logits.argmax(2) == labels[:, None]).double().mean(1)
    if logits.shape[1] == 1:  # no separate members
        aleatoric, epistemic, agreement = torch.full((3, len(labels)), math.nan, dtype=torch.double)
    in_set = defer = None
    if calibration is not None:
        in_set = prediction_sets(probabilities, calibration.set_thresholds(coverage, len(classes), sets), sets)
        threshold = calibration.confidence_threshold(max_error_rate)  # infinite if no threshold is safe
        defer = confidence < threshold
    probability = average.softmax(1).gather(1, labels[:, None])[:, 0]
    return ImagePredictions(
        names, classes, probabilities, probability, confidence, labels, total, aleatoric, epistemic, agreement, in_set,
        defer, scaled, features,
    )  # fmt: skip
