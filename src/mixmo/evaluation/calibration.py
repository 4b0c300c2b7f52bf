"""Post-hoc calibration on validation images: temperature, conformal and abstention thresholds.

It is kept in the run's folder, so that using the network needs neither the validation images nor the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from mixmo.cache import keep_tensors, read_tensors
from mixmo.config.settings import Settings
from mixmo.data.datasets import DOWNLOAD
from mixmo.data.module import DataModule
from mixmo.errors import InputError
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import Predictions, join_predictions, predict
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.conformal import conformity, set_threshold
from mixmo.metrics.selective import confidence_threshold
from mixmo.metrics.temperature import fit_temperature
from mixmo.runs import CHECKPOINTS, RunFolder


@dataclass(frozen=True)
class Calibration:
    """What follows from predictions on validation images; never from the test set.

    Attributes:
        temperature: T, by which the average of logits is divided.
        confidence: (N,) largest probabilities after it.
        correct: (N,) whether those classes were right.
        likely: (N,) probabilities of the true classes.

    Example:
        >>> import torch
        >>> found = fit_calibration(torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
        >>> round(found.temperature, 2), round(found.confidence[0].item(), 2), found.set_threshold(0.5) > 0.7
        (3.64, 0.75, True)
    """

    temperature: float
    confidence: Tensor
    correct: Tensor
    likely: Tensor

    def set_threshold(self, coverage: float) -> float:
        """Return the least probability of a class in a set (:func:`mixmo.metrics.conformal.set_threshold`)."""
        return set_threshold(self.likely, coverage)

    def confidence_threshold(self, risk: float) -> float:
        """Return the least confidence to answer at (:func:`mixmo.metrics.selective.confidence_threshold`)."""
        return confidence_threshold(self.confidence, self.correct, risk)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the calibrated probabilities (N, K) of averaged logits (N, K), in float64."""
        return (logits.double() / self.temperature).softmax(1)


def fit_calibration(logits: Tensor, targets: Tensor) -> Calibration:
    """Return the calibration that validation images give.

    T is :func:`mixmo.metrics.fit_temperature`'s; where every image is right it is at least 1, since the likelihood then
    grows as T falls to 0, and a few images without a mistake are no reason to be surer.

    Args:
        logits: (N, K), averaged over the members.
        targets: (N,) class numbers.

    Raises:
        InputError: if there are none, or they do not fit.
    """
    temperature = fit_temperature(logits, targets)
    if bool((logits.argmax(1) == targets).all()):
        temperature = max(temperature, 1.0)
    probabilities = (logits.double() / temperature).softmax(1)
    confidence, predicted = probabilities.max(1)
    return Calibration(temperature, confidence, predicted == targets, conformity(probabilities, targets))


def calibrate(run: TrainedRun, precision: str = "32-true", refresh: bool = False) -> Calibration | None:
    """Return the calibration of a run's checkpoint, kept in its folder; ``None`` without a validation set.

    Args:
        run: The run; its validation images are needed, unless a calibration of the checkpoint is kept already.
        precision: Of the predictions.
        refresh: Predict again even if predictions are kept.

    Raises:
        MissingError: if the checkpoint or the dataset is missing.
        InputError: if one of them is damaged, or the dataset has changed so that other images would be drawn.
    """
    if not run.settings.data.validation:
        return None
    if not refresh and (known := load_kept_calibration(run)) is not None:
        return known
    found = predict(run, "validation", precision, refresh)
    calibration = fit_calibration(mean_logits(found.logits), found.targets)
    tensors = {"confidence": calibration.confidence, "correct": calibration.correct, "likely": calibration.likely}
    note = {"checkpoint": run.digest, "temperature": calibration.temperature}
    keep_tensors(_file(run), tensors, note)
    return calibration


def pool_calibration(parts: Sequence[Predictions], names: Sequence[str]) -> Calibration:
    """Return the calibration of the average of all members' logits on validation images that networks share.

    Args:
        parts: What each network predicts for its validation images.
        names: The networks', for the error.

    Raises:
        InputError: if they are not known to be the same: one network may have learned from what another held out.

    Example:
        >>> import torch
        >>> logits, targets = torch.tensor([[[4.0, 0.0]]] * 4), torch.tensor([0, 0, 0, 1])
        >>> one, two = (Predictions(scale * logits, targets, ["a", "b"], images="x") for scale in (1, 3))
        >>> round(pool_calibration([one, two], ["one", "two"]).temperature, 2)   # 8 / T = log 3
        7.28
    """
    first = parts[0]
    for part, name in zip(parts, names, strict=True):
        if not part.images:
            raise InputError(f"{name} keeps predictions of an earlier version; see `mixmo test {name} --refresh`.")
        if not part.are_of(first) or part.classes != first.classes:
            raise InputError(
                f"{names[0]} and {name} held out different images for validation, so that one has learned from what "
                "the other is judged by; train them with one data.split_seed, or give the dataset a val folder."
            )
    found = join_predictions(parts, names)
    return fit_calibration(mean_logits(found.logits), found.targets)


def calibrate_run(
    run: RunFolder, settings: Settings, data: DataModule | None = None, module: nn.Module | None = None
) -> None:
    """Keep the calibration of each of a run's checkpoints, so that predictions need no dataset.

    Args:
        run: The run's folder.
        settings: Its settings; where they hold out no images for validation, nothing is kept.
        data: Its images, where they are open, or a program gave them.
        module: Its backbone, where a program gave it.
    """
    for checkpoint in CHECKPOINTS if settings.data.validation else ():
        allowed = settings.model.download or settings.data.download
        trained = TrainedRun(run, checkpoint, allowed, DOWNLOAD, data, module)
        if not run.differences(checkpoint):  # else the network has settings of its own
            trained.settings = settings
        calibrate(trained)


def load_kept_calibration(run: TrainedRun) -> Calibration | None:
    """Return the calibration kept in a run's folder; ``None`` if there is none, or it is of another checkpoint.

    Args:
        run: The run; its dataset may be gone.
    """
    if (known := read_tensors(_file(run))) is None or known[1].get("checkpoint") != run.digest:
        return None
    tensors, note = known
    return Calibration(float(note["temperature"]), *(tensors[key] for key in ("confidence", "correct", "likely")))


def _file(run: TrainedRun) -> Path:
    return run.path / f"calibration-{run.checkpoint}.safetensors"
