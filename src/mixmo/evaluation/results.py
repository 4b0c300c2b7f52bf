"""Evaluation of a run, an ensemble of runs or another program's predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mixmo.config.hardware import Precision
from mixmo.errors import InputError
from mixmo.evaluation.calibration import Calibration, calibrate, pool_calibration
from mixmo.evaluation.diagnosis import Diagnosis, diagnose
from mixmo.evaluation.evaluate import EnsembleMetrics, basic_metrics, measure
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import Predictions, join_predictions, predict, read_predictions
from mixmo.evaluation.robustness import CorruptionResult, evaluate_corruptions
from mixmo.metrics import OutOfDistribution
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.conformal import measure_sets
from mixmo.metrics.ood import SCORES
from mixmo.runs import Checkpoint, RunFolder
from mixmo.validation import Boolean, Text, settings_class


@settings_class(frozen=True)
class EvaluationOptions:
    """How runs are evaluated.

    Raises:
        InputError: if the checkpoint or the precision is unknown.

    Example:
        >>> EvaluationOptions(checkpoint="best").precision
        '32-true'
    """

    checkpoint: Checkpoint = "last"
    """The last checkpoint, or the best on the validation set."""
    precision: Precision = "32-true"
    """bf16-mixed is faster where the device has units for it."""
    ood: list[Text] = field(default_factory=list)
    """Out-of-distribution datasets, whose images are of none of the classes."""
    corruptions: Boolean | Text | None = None
    """Corrupt the test images in 19 ways; with a folder, read the files of CIFAR-10-C or CIFAR-100-C there."""
    refresh: Boolean = False
    """Predict again even if an earlier call's results are kept."""
    download: Boolean = False
    """Allow downloads of datasets, and of what networks are built from."""


COVERAGES = (90, 95)
"""Per cent of the images whose true class conformal sets are to hold."""


@dataclass(frozen=True)
class OODResult:
    """How well the test images are told from those of an out-of-distribution dataset.

    Attributes:
        predictions: On the other dataset's test images.
        metrics: ``auroc``, ``aupr`` and ``fpr95`` by score (:class:`mixmo.metrics.OutOfDistribution`).
    """

    predictions: Predictions
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True)
class EvaluationResult:
    """The evaluation of a network, or of an ensemble of networks, on a test set.

    Attributes:
        predictions: On the test set.
        metrics: Of the ensemble and of each member.
        scaled: ``temperature``, fitted on the validation set, and of the logit average on the test set after it
            ``nll_scaled``, ``ece_scaled``, and coverage and size of conformal sets; empty without a validation set that
            all runs share.
        unscaled: Why several runs have none of these; empty if they have.
        ood: By the name of the out-of-distribution dataset.
        corruptions: On corrupted test images; ``None`` where that was not asked for.
        diagnosis: Of a single run; ``None`` for ensembles of runs and another program's predictions.
        per_class: Metrics of each class by its name (:func:`class_metrics`); empty where that was not asked for.
        calibration: What ``scaled`` is by; ``None`` where there is none.
    """

    predictions: Predictions
    metrics: EnsembleMetrics
    scaled: dict[str, float] = field(default_factory=dict)
    unscaled: str = ""
    ood: dict[str, OODResult] = field(default_factory=dict)
    corruptions: CorruptionResult | None = None
    diagnosis: Diagnosis | None = None
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calibration: Calibration | None = None

    def flat(self) -> dict[str, float]:
        """Return all metrics by the keys of ``test.json``, which docs/evaluation.md explains."""
        found = self.metrics.flat() | self.scaled | (self.diagnosis.flat() if self.diagnosis else {})
        for dataset, result in self.ood.items():
            for score, metrics in result.metrics.items():
                found |= {f"ood/{dataset}/{score}/{key}": value for key, value in metrics.items()}
        if self.corruptions is not None:
            found |= {f"corruption/{key}": value for key, value in self.corruptions.means().items()}
        return found


def evaluate_runs(runs: Sequence[RunFolder | TrainedRun], options: EvaluationOptions | None = None) -> EvaluationResult:
    """Evaluate runs on their test set, as one ensemble of all their members. Nothing is printed.

    Args:
        runs: One or several: folders, or open runs of the checkpoint that the options name.
        options: How; ``None`` takes the defaults.

    Raises:
        MissingError: if a run, its checkpoint or a dataset is missing.
        InputError: if a checkpoint is damaged or of another network, or the runs do not fit each other.

    Example:
        >>> evaluate_runs([RunFolder("runs/quickstart")]).metrics.average["nll"]  # doctest: +SKIP
    """
    options = options or EvaluationOptions()
    opened = [
        TrainedRun(run, options.checkpoint, options.download) if isinstance(run, RunFolder) else run for run in runs
    ]
    names = [str(run.path) for run in opened]
    for run in opened:
        run.warn_of_changes()

    def predictions(dataset: str) -> Predictions:
        return join_predictions([predict(run, dataset, options.precision, options.refresh) for run in opened], names)

    test = predictions("test")
    others = {dataset: predictions(dataset) for dataset in options.ood}
    metrics = measure(test.logits, test.targets)
    calibration, unscaled = _find_calibration(opened, options)
    scaled = scaled_metrics(test, calibration) if calibration else {}
    ood = {dataset: OODResult(other, ood_metrics(test, other)) for dataset, other in others.items()}
    corruptions = None
    if options.corruptions:
        folder = None if options.corruptions is True else str(options.corruptions)
        corruptions = evaluate_corruptions(opened, test.targets, options.precision, folder, options.refresh)
    diagnosis = diagnose(opened[0], test.epochs, options.refresh) if len(opened) == 1 else None
    return EvaluationResult(test, metrics, scaled, unscaled, ood, corruptions, diagnosis, calibration=calibration)


def _find_calibration(runs: Sequence[TrainedRun], options: EvaluationOptions) -> tuple[Calibration | None, str]:
    """Return the calibration, or why several runs have none together."""
    if len(runs) == 1:
        return calibrate(runs[0], options.precision, options.refresh), ""
    names = [str(run.path) for run in runs]
    try:
        for run, name in zip(runs, names, strict=True):
            if not run.settings.data.validation:
                raise InputError(f"{name} held out no images for validation (data.validation is 0).")
        parts = [predict(run, "validation", options.precision, options.refresh) for run in runs]
        return pool_calibration(parts, names), ""
    except InputError as error:
        return None, f"Not calibrated as an ensemble: {error}"


def evaluate_predictions(file: str | Path) -> EvaluationResult:
    """Evaluate predictions that another program saved (:func:`mixmo.evaluation.predictions.read_predictions`).

    Args:
        file: The ``.npz`` file.

    Raises:
        MissingError: if there is no such file.
        InputError: if it holds no predictions, or their average is not finite.
    """
    found = read_predictions(file)
    try:
        return EvaluationResult(found, measure(found.logits, found.targets))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def scaled_metrics(test: Predictions, calibration: Calibration) -> dict[str, float]:
    """Return metrics of the logit average on the test set, by the temperature and the sets of the validation set."""
    average = mean_logits(test.logits)
    basic = basic_metrics(average / calibration.temperature, test.targets)
    found = {"temperature": calibration.temperature, "nll_scaled": basic["nll"], "ece_scaled": basic["ece"]}
    for percent in COVERAGES:
        threshold = calibration.set_threshold(percent / 100)
        sets = measure_sets(calibration.probabilities(average), test.targets, threshold)
        found |= {f"{key}_{percent}": value for key, value in sets.items()}
    return found


def ood_metrics(test: Predictions, other: Predictions) -> dict[str, dict[str, float]]:
    """Return, for each score, how well the members tell the test images from out-of-distribution images."""
    metric = OutOfDistribution()
    metric.update(test.logits, out=False)
    metric.update(other.logits, out=True)
    values = metric.compute()
    return {score: {key: values[f"{score}/{key}"].item() for key in OutOfDistribution.descriptions} for score in SCORES}


def class_metrics(predictions: Predictions, calibration: Calibration | None = None) -> dict[str, dict[str, float]]:
    """Return metrics of the logit average for each class, by its name; NaN for a class without images.

    Args:
        predictions: On the test set.
        calibration: For the coverage of conformal sets.

    Returns:
        ``images``, ``accuracy`` and ``nll``; with a calibration ``set_coverage_90`` and ``set_coverage_95``, which the
        sets promise for all images together, not for each class.
    """
    samples, average = predictions.average(), mean_logits(predictions.logits)
    found: dict[str, dict[str, float]] = {}
    for number, name in enumerate(predictions.classes):
        own = predictions.targets == number
        accuracy, nll = samples.right[own].mean().item(), samples.nll[own].mean().item()
        found[name] = {"images": int(own.sum()), "accuracy": accuracy, "nll": nll}
        if calibration is not None:
            probabilities, targets = calibration.probabilities(average[own]), predictions.targets[own]
            for percent in COVERAGES:
                sets = measure_sets(probabilities, targets, calibration.set_threshold(percent / 100))
                found[name][f"set_coverage_{percent}"] = sets["set_coverage"]
    return found
