"""Post-hoc calibration on validation images: temperature, conformal and abstention thresholds.

It is saved in the run's folder, so that the network can be used without the dataset.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixmo.cache import cache_tensors, read_tensors
from mixmo.config.settings import Settings
from mixmo.data.batches import Augmentations
from mixmo.data.datasets import DOWNLOAD
from mixmo.data.messages import list_some
from mixmo.data.module import DataModule
from mixmo.errors import InputError, MissingError
from mixmo.escaping import printable
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import Predictions, join_predictions, predict
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.conformal import Sets, conformity, set_threshold
from mixmo.metrics.multi_label import as_binary, best_thresholds
from mixmo.metrics.selective import confidence_threshold
from mixmo.metrics.temperature import describe_uncertainty, fit_temperature, fit_weights, temperature_interval
from mixmo.runs import CHECKPOINTS, RunFolder

logger = logging.getLogger("mixmo")

Weights = Literal["equal", "fitted"]
"""How the networks of an ensemble are weighted."""

FEW_IMAGES = 10
"""Warn about the threshold of a class with fewer validation images."""

COLUMNS = ("confidence", "correct", "likely", "targets", "aps", "raps")
"""Values saved for each validation image."""


def check_weights(weights: Weights, networks: Sequence[object]) -> None:
    """Refuse weights of a single network."""
    if len(networks) == 1 and weights != "equal":
        name = printable(str(networks[0]))
        raise InputError(f"weights {weights} is for ensembles of several networks; {name} is one: leave it out.")


@dataclass(frozen=True)
class ClassCalibration:
    """Calibration of single-label predictions on N validation images, never on the test set.

    Attributes:
        temperature: T, the divisor of the averaged logits.
        confidence: (N,) largest calibrated probabilities.
        correct: (N,) whether the most probable class is the true one.
        likely: (N,) calibrated probabilities of the true classes.
        targets: (N,) the true classes.
        aps: (N,) scores of the true classes for adaptive sets (:func:`mixmo.metrics.conformal.score_classes`).
        raps: (N,) the same for regularised adaptive sets.
        interval: 95 % interval of T (:func:`mixmo.metrics.temperature.temperature_interval`); none in exports, and
            none if every image is classified correctly.
        weights: Factors of the logits of an ensemble's networks, if fitted.
    """

    temperature: float
    confidence: Tensor
    correct: Tensor
    likely: Tensor
    targets: Tensor
    aps: Tensor
    raps: Tensor
    interval: tuple[float, float] | None = None
    weights: tuple[float, ...] | None = None

    def set_thresholds(self, coverage: float, num_classes: int, sets: Sets = "marginal") -> Tensor:
        """Return each class's score threshold (K,) for conformal sets (:func:`mixmo.metrics.conformal.set_threshold`).

        Thresholds differ only for ``classwise`` sets; they are minus infinity for classes with too few images.
        """
        if sets == "classwise":
            scores = [self.likely[self.targets == number] for number in range(num_classes)]
        else:
            scores = [{"marginal": self.likely, "aps": self.aps, "raps": self.raps}[sets]]
        thresholds = torch.tensor([set_threshold(part, coverage) for part in scores], dtype=torch.float64)
        return thresholds.expand(num_classes)

    def confidence_threshold(self, risk: float) -> float:
        """Return the lowest confidence to answer at (:func:`mixmo.metrics.selective.confidence_threshold`)."""
        return confidence_threshold(self.confidence, self.correct, risk)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the calibrated probabilities (N, K) of averaged logits (N, K), in float64."""
        return (logits.double() / self.temperature).softmax(1)


@dataclass(frozen=True)
class LabelCalibration:
    """Calibration of multi-label predictions: temperature T, and thresholds (K,) of calibrated probabilities."""

    temperature: float
    thresholds: Tensor

    interval = weights = None
    """Only a :class:`ClassCalibration` has them."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the calibrated probabilities (N, K) of averaged logits (N, K), in float64."""
        return (logits.double() / self.temperature).sigmoid()


AnyCalibration = ClassCalibration | LabelCalibration


def to_columns(calibration: AnyCalibration) -> dict[str, Tensor]:
    """Return the tensors to save with a calibration's temperature, by name."""
    keys = COLUMNS if isinstance(calibration, ClassCalibration) else ("thresholds",)
    return {key: getattr(calibration, key) for key in keys}


def from_columns(
    temperature: float, columns: Mapping[str, Tensor], interval: tuple[float, float] | None = None
) -> AnyCalibration:
    """Rebuild a calibration from its temperature and :func:`to_columns`."""
    if "thresholds" in columns:
        return LabelCalibration(temperature, columns["thresholds"])
    fields: dict[str, Any] = {key: columns[key] for key in COLUMNS}
    return ClassCalibration(temperature, **fields, interval=interval)


def fit_calibration(logits: Tensor, targets: Tensor) -> AnyCalibration:
    """Fit a calibration to averaged logits (N, K) of validation images.

    T is that of :func:`mixmo.metrics.fit_temperature`, but at least 1 if every image is classified correctly: the
    likelihood then grows as T falls to 0, which a few images without a mistake do not justify. A T raised to 1 has no
    interval. With several labels, targets (N, K), each label is a binary decision.

    Example:
        >>> fitted = fit_calibration(torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
        >>> round(fitted.temperature, 2), round(fitted.confidence[0].item(), 2), fitted.set_thresholds(0.5, 2)
        (3.64, 0.75, tensor([0.7500, 0.7500], dtype=torch.float64))
    """
    decisions, truth = (logits, targets) if targets.dim() == 1 else as_binary(logits, targets)
    temperature = fit_temperature(decisions, truth)
    raised = temperature < 1 and bool((decisions.argmax(1) == truth).all())
    if raised:
        temperature = 1.0
    if targets.dim() == 2:
        return LabelCalibration(temperature, best_thresholds((logits.double() / temperature).sigmoid(), targets))
    probabilities = (logits.double() / temperature).softmax(1)
    confidence, predicted = probabilities.max(1)
    likely, aps, raps = (conformity(probabilities, targets, sets) for sets in ("marginal", "aps", "raps"))
    interval = None if raised else temperature_interval(logits, targets)
    return ClassCalibration(temperature, confidence, predicted == targets, likely, targets, aps, raps, interval)


def calibrate(
    run: TrainedRun, precision: str = "32-true", refresh: bool = False, tta: Augmentations = "none"
) -> AnyCalibration | None:
    """Return the calibration of a run's checkpoint for a test-time augmentation; ``None`` without a validation set.

    It is cached in the run's folder, by precision, for what :func:`mixmo.evaluation.predictions.predict` depends on.
    If the validation images are missing, or others would be drawn now, the checkpoint's float32 calibration is used.
    """
    if not run.settings.data.validation:
        return None
    file = _file(run, tta, precision)
    cached = None if refresh else read_tensors(file)
    try:
        about = run.depends_on("validation")
        if cached is not None and about.items() <= cached[1].items():
            return _rebuild(*cached)
        predictions = predict(run, "validation", precision, refresh, tta)
    except InputError as error:
        if refresh or (kept := load_cached_calibration(run, tta)) is None:
            raise
        if not isinstance(error, MissingError):
            logger.warning("%s Until then, the calibration of %s is used.", error, printable(str(run.path)))
        return kept
    calibration = fit_calibration(mean_logits(predictions.logits), predictions.targets)
    note = about | {"temperature": calibration.temperature, "interval": calibration.interval}
    cache_tensors(file, to_columns(calibration), note)
    return calibration


def pool_calibration(parts: Sequence[Predictions], names: Sequence[str], weights: Weights = "equal") -> AnyCalibration:
    """Return the calibration of an ensemble of networks on their common validation images.

    ``fitted`` also fits a weight per network to them (:func:`mixmo.metrics.temperature.fit_weights`).

    Raises:
        InputError: if validation images differ: a network may have been trained on another's.
    """
    first = parts[0]
    for part, name in zip(parts, names, strict=True):
        if not part.same_images(first) or part.classes != first.classes:
            raise InputError(
                f"{names[0]} and {name} held out different images for validation, so each may have been trained on the "
                "other's; train them with the same data.split_seed and fold, or give the dataset a val folder."
            )
    factors: tuple[float, ...] = ()
    if weights == "fitted":
        sums = torch.stack([part.logits.double().sum(1) for part in parts], 1)
        factors = tuple(fit_weights(sums, first.targets).tolist())
    joined = join_predictions(parts, names, factors)
    fitted = fit_calibration(mean_logits(joined.logits), joined.targets)
    return replace(fitted, weights=factors) if factors and isinstance(fitted, ClassCalibration) else fitted


def calibrate_run(
    run: RunFolder, settings: Settings, data: DataModule | None = None, module: nn.Module | None = None
) -> None:
    """Save the calibration of a run's checkpoints, so that predictions need no dataset; warn if it is uncertain.

    ``data`` and ``module`` are its images and backbone, if already open or passed by a program.
    """
    for checkpoint in CHECKPOINTS if settings.data.validation else ():
        allowed = settings.model.download or settings.data.download
        trained = TrainedRun(run, checkpoint, allowed, DOWNLOAD, data, module)
        if not run.differences(checkpoint):  # else the network was trained with other settings
            trained.settings = settings
        fitted = calibrate(trained)
        if checkpoint != CHECKPOINTS[0]:
            continue
        if isinstance(fitted, LabelCalibration):
            _warn_of_rare_labels(trained.data)
        elif fitted is not None and fitted.interval and (warning := describe_uncertainty(*fitted.interval)):
            logger.warning("%s", warning)


def _warn_of_rare_labels(data: DataModule) -> None:
    """Warn of classes whose thresholds are fitted to few images."""
    counts = data.source("validation").labels.sum(0).tolist()
    if rare := [name for name, count in zip(data.classes, counts, strict=True) if count < FEW_IMAGES]:
        logger.warning(
            "%d of %d classes have fewer than %d validation images: their thresholds (%s) are noisy; %s, or use "
            "thresholds of 0.5.", len(rare), len(counts), FEW_IMAGES, list_some(rare),
            "raise data.validation" if data.is_drawn("validation") else "add images",
        )  # fmt: skip


def load_cached_calibration(run: TrainedRun, tta: Augmentations = "none") -> AnyCalibration | None:
    """Return the checkpoint's calibration that :func:`calibrate` cached, without opening the dataset; else ``None``."""
    cached = read_tensors(_file(run, tta))
    return None if cached is None or cached[1].get("checkpoint") != run.digest else _rebuild(*cached)


def _rebuild(tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> AnyCalibration:
    interval = None if note["interval"] is None else tuple(note["interval"])
    return from_columns(float(note["temperature"]), tensors, interval)


def _file(run: TrainedRun, tta: Augmentations, precision: str = "32-true") -> Path:
    parts = ["calibration", run.checkpoint, precision.replace("32-true", ""), tta.replace("none", "")]
    return run.path / f"{'-'.join(filter(None, parts))}.safetensors"
