"""Post-hoc calibration on validation images: temperature, conformal and abstention thresholds.

It is saved in the run's folder, so that using the network needs neither the validation images nor the dataset.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixmo.cache import keep_tensors, read_tensors
from mixmo.config.settings import Settings
from mixmo.data.batches import Augmentations
from mixmo.data.datasets import DOWNLOAD
from mixmo.data.messages import list_some
from mixmo.data.module import DataModule
from mixmo.errors import InputError
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import Predictions, join_predictions, predict
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.conformal import Sets, conformity, set_threshold
from mixmo.metrics.multi_label import as_binary, best_thresholds
from mixmo.metrics.selective import confidence_threshold
from mixmo.metrics.temperature import describe_doubt, fit_temperature, fit_weights, temperature_interval
from mixmo.runs import CHECKPOINTS, RunFolder

logger = logging.getLogger("mixmo")

Weights = Literal["equal", "fitted"]
"""How the networks of an ensemble are weighted."""

FEW_IMAGES = 10
"""Validation images that show a class, below which a warning is logged about its threshold."""

COLUMNS = ("confidence", "correct", "likely", "targets", "aps", "raps")
"""What is saved for each validation image."""


@dataclass(frozen=True)
class Calibration:
    """Temperature and thresholds fitted on validation images, never on the test set.

    Attributes:
        temperature: T, by which the average of logits is divided.
        confidence: (N,) largest calibrated probabilities.
        correct: (N,) whether their classes are right.
        likely: (N,) calibrated probabilities of the true classes.
        targets: (N,) the true classes.
        aps: (N,) scores of the true classes for adaptive sets (:func:`mixmo.metrics.conformal.score_classes`).
        raps: (N,) the same for regularised ones.
        interval: 95 % interval of T (:func:`mixmo.metrics.temperature.temperature_interval`); exports have none.
        weights: Factors of the logits of an ensemble's networks, where these are fitted.
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
        """Return the least score (K,) of each class in a set (:func:`mixmo.metrics.conformal.set_threshold`).

        ``classwise`` sets have a threshold for each class, minus infinity where its validation images are too few.
        """
        if sets == "classwise":
            parts = [self.likely[self.targets == number] for number in range(num_classes)]
        else:
            parts = [{"marginal": self.likely, "aps": self.aps, "raps": self.raps}[sets]]
        found = torch.tensor([set_threshold(part, coverage) for part in parts], dtype=torch.float64)
        return found.expand(num_classes)

    def confidence_threshold(self, risk: float) -> float:
        """Return the least confidence to answer at (:func:`mixmo.metrics.selective.confidence_threshold`)."""
        return confidence_threshold(self.confidence, self.correct, risk)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the calibrated probabilities (N, K) of averaged logits (N, K), in float64."""
        return (logits.double() / self.temperature).softmax(1)


@dataclass(frozen=True)
class LabelCalibration:
    """Temperature T, and thresholds (K,) of calibrated probabilities, of validation images with several labels."""

    temperature: float
    thresholds: Tensor

    interval = weights = None
    """What only a :class:`Calibration` has."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the calibrated probability of each class (N, K) of averaged logits (N, K), in float64."""
        return (logits.double() / self.temperature).sigmoid()


AnyCalibration = Calibration | LabelCalibration


def columns_of(calibration: AnyCalibration) -> dict[str, Tensor]:
    """Return what is saved of a calibration beside its temperature, by name."""
    kept = COLUMNS if isinstance(calibration, Calibration) else ("thresholds",)
    return {key: getattr(calibration, key) for key in kept}


def from_columns(
    temperature: float, columns: Mapping[str, Tensor], interval: tuple[float, float] | None = None
) -> AnyCalibration:
    """Return the calibration of which these are the :func:`columns_of`."""
    if "thresholds" in columns:
        return LabelCalibration(temperature, columns["thresholds"])
    own: dict[str, Any] = {key: columns[key] for key in COLUMNS}
    return Calibration(temperature, **own, interval=interval)


def fit_calibration(logits: Tensor, targets: Tensor) -> AnyCalibration:
    """Return the calibration that validation images give, from averaged logits (N, K).

    T is :func:`mixmo.metrics.fit_temperature`'s; where every image is classified correctly it is at least 1, since the
    likelihood then grows as T falls to 0, which a few images without a mistake do not justify. With several labels,
    targets (N, K), each is a binary decision between absent and present.

    Example:
        >>> found = fit_calibration(torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
        >>> round(found.temperature, 2), round(found.confidence[0].item(), 2), found.set_thresholds(0.5, 2)
        (3.64, 0.75, tensor([0.7500, 0.7500], dtype=torch.float64))
    """
    answers, right = (logits, targets) if targets.dim() == 1 else as_binary(logits, targets)
    temperature = fit_temperature(answers, right)
    if bool((answers.argmax(1) == right).all()):
        temperature = max(temperature, 1.0)
    if targets.dim() == 2:
        return LabelCalibration(temperature, best_thresholds((logits.double() / temperature).sigmoid(), targets))
    probabilities = (logits.double() / temperature).softmax(1)
    confidence, predicted = probabilities.max(1)
    likely, aps, raps = (conformity(probabilities, targets, sets) for sets in ("marginal", "aps", "raps"))
    interval = temperature_interval(logits, targets)
    return Calibration(temperature, confidence, predicted == targets, likely, targets, aps, raps, interval)


def calibrate(
    run: TrainedRun, precision: str = "32-true", refresh: bool = False, tta: Augmentations = "none"
) -> AnyCalibration | None:
    """Return the calibration of a run's checkpoint, saved in its folder; ``None`` without a validation set.

    The validation images are predicted unless it is saved already; each test-time augmentation has its own.
    """
    if not run.settings.data.validation:
        return None
    if not refresh and (known := load_kept_calibration(run, tta)) is not None:
        return known
    found = predict(run, "validation", precision, refresh, tta)
    calibration = fit_calibration(mean_logits(found.logits), found.targets)
    note = {"checkpoint": run.digest, "temperature": calibration.temperature, "interval": calibration.interval}
    keep_tensors(_file(run, tta), columns_of(calibration), note)
    return calibration


def pool_calibration(parts: Sequence[Predictions], names: Sequence[str], weights: Weights = "equal") -> AnyCalibration:
    """Return the calibration of all members' mean logits on validation images that networks share.

    ``fitted`` weighs each network's logits by the same images (:func:`mixmo.metrics.temperature.fit_weights`).

    Raises:
        InputError: if the images are not known to be the same: one network may have learned from another's.
    """
    first = parts[0]
    for part, name in zip(parts, names, strict=True):
        if not part.are_of(first) or part.classes != first.classes:
            raise InputError(
                f"{names[0]} and {name} held out different images for validation, so that one was trained on images "
                "that calibrate the other; train them with one data.split_seed and one fold, or give the dataset a val "
                "folder."
            )
    own: tuple[float, ...] = ()
    if weights == "fitted":
        sums = torch.stack([part.logits.double().sum(1) for part in parts], 1)
        own = tuple(fit_weights(sums, first.targets).tolist())
    found = join_predictions(parts, names, own)
    calibration = fit_calibration(mean_logits(found.logits), found.targets)
    return replace(calibration, weights=own) if own and isinstance(calibration, Calibration) else calibration


def calibrate_run(
    run: RunFolder, settings: Settings, data: DataModule | None = None, module: nn.Module | None = None
) -> None:
    """Save the calibration of a run's checkpoints, so that predictions need no dataset; warn if it is uncertain.

    ``data`` and ``module`` are its images and its backbone, where they are open already or a program gave them.
    """
    for checkpoint in CHECKPOINTS if settings.data.validation else ():
        allowed = settings.model.download or settings.data.download
        trained = TrainedRun(run, checkpoint, allowed, DOWNLOAD, data, module)
        if not run.differences(checkpoint):  # else the network has settings of its own
            trained.settings = settings
        found = calibrate(trained)
        if checkpoint != CHECKPOINTS[0]:
            continue
        if isinstance(found, LabelCalibration):
            _warn_of_rare_labels(trained.data)
        elif found is not None and found.interval is not None and (doubt := describe_doubt(*found.interval)):
            logger.warning("%s", doubt)


def _warn_of_rare_labels(data: DataModule) -> None:
    """Name the classes whose thresholds follow from few images."""
    counts = data.source("validation").labels.sum(0).tolist()
    if rare := [name for name, count in zip(data.classes, counts, strict=True) if count < FEW_IMAGES]:
        logger.warning(
            "%d of %d classes have fewer than %d validation images: their thresholds (%s) are noisy; %s, or use "
            "thresholds of 0.5.", len(rare), len(counts), FEW_IMAGES, list_some(rare),
            "raise data.validation" if data.draws("validation") else "add images",
        )  # fmt: skip


def load_kept_calibration(run: TrainedRun, tta: Augmentations = "none") -> AnyCalibration | None:
    """Return the calibration that :func:`calibrate` has kept of the checkpoint; ``None`` if there is none."""
    if (known := read_tensors(_file(run, tta))) is None or known[1].get("checkpoint") != run.digest:
        return None
    tensors, note = known
    interval = None if note["interval"] is None else tuple(note["interval"])
    return from_columns(float(note["temperature"]), tensors, interval)


def _file(run: TrainedRun, tta: Augmentations) -> Path:
    views = "" if tta == "none" else f"-{tta}"
    return run.path / f"calibration-{run.checkpoint}{views}.safetensors"
