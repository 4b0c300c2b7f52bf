"""Post-hoc calibration on validation images: temperature, conformal and abstention thresholds.

It is saved in the run's folder, so that using the network needs neither the validation images nor the dataset.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixmo.cache import keep_tensors, read_tensors
from mixmo.config.settings import Settings
from mixmo.data.batches import Augmentations
from mixmo.data.datasets import DOWNLOAD
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

    Example:
        >>> found = fit_calibration(torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
        >>> round(found.temperature, 2), round(found.confidence[0].item(), 2), found.set_thresholds(0.5, 2)
        (3.64, 0.75, tensor([0.7500, 0.7500], dtype=torch.float64))
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

        Args:
            coverage: Between 0 and 1.
            num_classes: K.
            sets: How classes are chosen; ``classwise`` has a threshold for each class, minus infinity where its
                validation images are too few for that coverage.

        Raises:
            InputError: if the coverage is not between 0 and 1.
        """
        if sets == "marginal":
            parts = [self.likely]
        elif sets == "classwise":
            parts = [self.likely[self.targets == number] for number in range(num_classes)]
        else:
            parts = [self.aps if sets == "aps" else self.raps]
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
    """Temperature and thresholds fitted on validation images with several labels, never on the test set.

    Attributes:
        temperature: T, by which the average of logits is divided.
        thresholds: (K,) calibrated probabilities above which a class is predicted
            (:func:`mixmo.metrics.multi_label.best_thresholds`).
    """

    temperature: float
    thresholds: Tensor

    interval = weights = None
    """What only a :class:`Calibration` has."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the calibrated probability of each class (N, K) of averaged logits (N, K), in float64."""
        return (logits.double() / self.temperature).sigmoid()


AnyCalibration = Calibration | LabelCalibration


def fit_calibration(logits: Tensor, targets: Tensor) -> AnyCalibration:
    """Return the calibration that validation images give.

    T is :func:`mixmo.metrics.fit_temperature`'s; where every image is classified correctly it is at least 1, since the
    likelihood then grows as T falls to 0, which a few images without a mistake do not justify. With several labels,
    each is a binary decision between absent and present.

    Args:
        logits: (N, K), averaged over the members.
        targets: (N,) class numbers, or (N, K), 0 or 1.

    Raises:
        InputError: if there are no images, or the shapes do not match.
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

    Args:
        run: The run; its validation images are needed, unless a calibration of the checkpoint is saved already.
        precision: Of the predictions.
        refresh: Predict again even if predictions are cached.
        tta: Test-time augmentation of those predictions; each has a separate calibration.

    Raises:
        MissingError: if the checkpoint or the dataset is missing.
        InputError: if one of them is damaged, or the dataset has changed so that other images would be drawn.
    """
    if not run.settings.data.validation:
        return None
    known = None if refresh else load_kept_calibration(run, tta)
    if known is not None:
        return known
    found = predict(run, "validation", precision, refresh, tta)
    calibration = fit_calibration(mean_logits(found.logits), found.targets)
    note = {"checkpoint": run.digest, "temperature": calibration.temperature, "interval": calibration.interval}
    columns = {key: getattr(calibration, key, None) for key in (*COLUMNS, "thresholds")}
    keep_tensors(_file(run, tta), {key: column for key, column in columns.items() if column is not None}, note)
    return calibration


def pool_calibration(parts: Sequence[Predictions], names: Sequence[str], weights: Weights = "equal") -> AnyCalibration:
    """Return the calibration of all members' mean logits on validation images that networks share.

    Args:
        parts: What each network predicts for its validation images.
        names: The networks' names, for the error.
        weights: ``equal``, or ``fitted``: a weight for each network's logits, by the same images
            (:func:`mixmo.metrics.temperature.fit_weights`).

    Raises:
        InputError: if the images are not known to be the same: one network may have learned from another's.

    Example:
        >>> import torch
        >>> logits, targets = torch.tensor([[[4.0, 0.0]]] * 4), torch.tensor([0, 0, 0, 1])
        >>> one, two = (Predictions(scale * logits, targets, ["a", "b"], images="x") for scale in (1, 3))
        >>> round(pool_calibration([one, two], ["one", "two"]).temperature, 2)   # 8 / T = log 3
        7.28
    """
    first = parts[0]
    for part, name in zip(parts, names, strict=True):
        if not part.are_of(first) or part.classes != first.classes:
            raise InputError(
                f"{names[0]} and {name} held out different images for validation, so that one was trained on images "
                "that calibrate the other; train them with one data.split_seed, or give the dataset a val folder."
            )
    if weights == "equal":
        found = join_predictions(parts, names)
        return fit_calibration(mean_logits(found.logits), found.targets)
    own = fit_weights(torch.stack([part.logits.double().sum(1) for part in parts], 1), first.targets)
    scaled = [replace(part, logits=weight * part.logits) for part, weight in zip(parts, own, strict=True)]
    pooled = pool_calibration(scaled, names)
    assert isinstance(pooled, Calibration)  # fit_weights takes class numbers only
    return replace(pooled, weights=tuple(own.tolist()))


def calibrate_run(
    run: RunFolder, settings: Settings, data: DataModule | None = None, module: nn.Module | None = None
) -> None:
    """Save the calibration of a run's checkpoints, so that predictions need no dataset; warn if it is uncertain.

    Args:
        run: The run's folder.
        settings: Its settings; where they hold out no images for validation, nothing is saved.
        data: Its images, if they are open already or a program gave them.
        module: Its backbone, where a program gave it.
    """
    for checkpoint in CHECKPOINTS if settings.data.validation else ():
        allowed = settings.model.download or settings.data.download
        trained = TrainedRun(run, checkpoint, allowed, DOWNLOAD, data, module)
        if not run.differences(checkpoint):  # else the network has settings of its own
            trained.settings = settings
        found = calibrate(trained)
        interval = None if found is None else found.interval
        if checkpoint == CHECKPOINTS[0] and interval is not None and (doubt := describe_doubt(*interval)):
            logger.warning("%s", doubt)


def load_kept_calibration(run: TrainedRun, tta: Augmentations = "none") -> AnyCalibration | None:
    """Return the calibration saved in a run's folder; ``None`` if there is none for this checkpoint.

    Args:
        run: The run; its dataset may be gone.
        tta: As for :func:`calibrate`.
    """
    if (known := read_tensors(_file(run, tta))) is None or known[1].get("checkpoint") != run.digest:
        return None
    tensors, note = known
    if run.header.multi_label:
        return LabelCalibration(float(note["temperature"]), tensors["thresholds"])
    columns: dict[str, Any] = {key: tensors[key] for key in COLUMNS}
    low, high = map(float, note["interval"])
    return Calibration(float(note["temperature"]), **columns, interval=(low, high))


def _file(run: TrainedRun, tta: Augmentations) -> Path:
    views = "" if tta == "none" else f"-{tta}"
    return run.path / f"calibration-{run.checkpoint}{views}.safetensors"
