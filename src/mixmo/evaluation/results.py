"""Evaluation of a run, an ensemble of runs or another program's predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch

from mixmo.config.hardware import Precision
from mixmo.data.batches import Augmentations
from mixmo.errors import InputError, refuse_labels
from mixmo.evaluation.calibration import (
    AnyCalibration,
    ClassCalibration,
    LabelCalibration,
    Weights,
    calibrate,
    check_weights,
    pool_calibration,
)
from mixmo.evaluation.diagnosis import Diagnosis, diagnose
from mixmo.evaluation.evaluate import ALONE, EnsembleMetrics, basic_metrics, measure
from mixmo.evaluation.inference import TrainedRun, check_views
from mixmo.evaluation.predictions import Predictions, join_predictions, predict, read_predictions
from mixmo.evaluation.robustness import CorruptionResult, evaluate_corruptions
from mixmo.metrics import MultiLabelScores, OutOfDistribution
from mixmo.metrics.chunks import in_chunks, mean_logits
from mixmo.metrics.conformal import SETS, Sets, measure_sets, prediction_sets
from mixmo.metrics.multi_label import average_precisions
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
    """bf16-mixed is faster on devices with hardware support."""
    tta: Augmentations = "none"
    """flip averages logits over the image and its mirror image, crops over centre and corners; also in calibration."""
    weights: Weights = "equal"
    """fitted weights the runs of an ensemble by their common validation images."""
    ood: list[Text] = field(default_factory=list)
    """Out-of-distribution datasets, whose images are of none of the classes."""
    corruptions: Boolean | Text | None = None
    """Corrupt the test images in 19 ways; with a folder, read the files of CIFAR-10-C or CIFAR-100-C there."""
    per_class: Boolean = False
    """Also report metrics of each class."""
    refresh: Boolean = False
    """Predict again even if an earlier call's results are cached."""
    download: Boolean = False
    """Allow downloads of datasets and backbones."""

    def __post_init__(self) -> None:
        if own := {"train", "validation", "test"} & {*self.ood}:
            _refuse_own_images(min(own))


def _refuse_own_images(name: str) -> NoReturn:
    raise InputError(f"ood is {name}, the run's own images; name another dataset, such as folder:PATH.")


COVERAGES = (90, 95)
"""Coverages of conformal sets, in per cent."""


@dataclass(frozen=True)
class OODResult:
    """Predictions for another dataset's test images, and how well scores separate these from the test images.

    ``metrics`` has ``auroc``, ``aupr`` and ``fpr95`` by score (:class:`mixmo.metrics.OutOfDistribution`).
    """

    predictions: Predictions
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True)
class EvaluationResult:
    """The evaluation of a network, or of an ensemble of networks, on a test set.

    Attributes:
        predictions: On the test set.
        metrics: Of the ensemble and of each member.
        scaled: Metrics of the averaged logits on the test set that use the calibration (:func:`scaled_metrics`), with
            coverage and size of marginal conformal sets. Empty without a validation set that all runs share.
        sets: Coverage and size of conformal sets of every kind (:func:`set_metrics`); empty like ``scaled``, and for
            images with several labels.
        unscaled: Why several runs have none of these; empty if they have.
        ood: By the name of the out-of-distribution dataset.
        corruptions: On corrupted test images; ``None`` if not requested.
        diagnosis: Of a single run; ``None`` for ensembles of runs and another program's predictions.
        per_class: Metrics of each class by name (:func:`class_metrics`); empty if not requested.
        calibration: The calibration that ``scaled`` uses, if any.
    """

    predictions: Predictions
    metrics: EnsembleMetrics
    scaled: dict[str, float] = field(default_factory=dict)
    sets: Mapping[Sets, Mapping[str, float]] = field(default_factory=dict)
    unscaled: str = ""
    ood: dict[str, OODResult] = field(default_factory=dict)
    corruptions: CorruptionResult | None = None
    diagnosis: Diagnosis | None = None
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calibration: AnyCalibration | None = None

    def flat(self) -> dict[str, float]:
        """Return all metrics by key of ``test.json``, as explained in docs/evaluation.md."""
        values = self.metrics.flat() | self.scaled | (self.diagnosis.flat() if self.diagnosis else {})
        for sets, measured in self.sets.items():
            if sets != "marginal":  # those are in `scaled`
                values |= {f"sets/{sets}/{key}": value for key, value in measured.items()}
        for dataset, result in self.ood.items():
            for score, metrics in result.metrics.items():
                values |= {f"ood/{dataset}/{score}/{key}": value for key, value in metrics.items()}
        if self.corruptions is not None:
            values |= {f"corruption/{key}": value for key, value in self.corruptions.means().items()}
        return values


def evaluate_runs(runs: Sequence[RunFolder | TrainedRun], options: EvaluationOptions | None = None) -> EvaluationResult:
    """Evaluate one or several runs on their test set, as one ensemble of all their members.

    Args:
        runs: Folders, or open runs of the options' checkpoint.
        options: How to evaluate; ``None`` for the defaults.

    Raises:
        MissingError: if a run, its checkpoint or a dataset is missing.
        InputError: if a checkpoint is damaged or of another network, or the runs cannot be ensembled.
    """
    options = options or EvaluationOptions()
    opened = [
        TrainedRun(run, options.checkpoint, options.download) if isinstance(run, RunFolder) else run for run in runs
    ]
    names = [str(run.path) for run in opened]
    if len({run.path.resolve() for run in opened}) < len(opened):
        raise InputError(f"{' + '.join(names)} names a run twice; an ensemble needs different runs.")
    check_weights(options.weights, names)
    for run, name in zip(opened, names, strict=True):
        run.warn_of_changes()
        if run.header.multi_label:
            asked = {"ood": options.ood, "corruptions": options.corruptions, "weights": options.weights != "equal"}
            refuse_labels(name, asked)
        check_views(run.header, options.tta, name)
        run.warn_of_views(options.tta)
        if run.settings.data.name in options.ood:
            _refuse_own_images(run.settings.data.name)
    how = (options.precision, options.refresh, options.tta)
    parts = [[predict(run, dataset, *how) for run in opened] for dataset in ("test", *options.ood)]
    calibration, unscaled = _find_calibration(opened, names, options)
    if unscaled and options.weights == "fitted":
        raise InputError(unscaled)
    weights = () if calibration is None else calibration.weights or ()
    test, *others = (join_predictions(predictions, names, weights) for predictions in parts)
    metrics = measure(test.logits, test.targets)
    sets = set_metrics(test, calibration) if isinstance(calibration, ClassCalibration) else {}
    scaled = scaled_metrics(test, calibration) | sets.get("marginal", {}) if calibration else {}
    ood = {name: OODResult(other, ood_metrics(test, other)) for name, other in zip(options.ood, others, strict=True)}
    corruptions = None
    if options.corruptions:
        folder = None if options.corruptions is True else str(options.corruptions)
        corruptions = evaluate_corruptions(opened, test.targets, folder, *how, weights=weights)
    diagnosis = diagnose(opened[0], test.epochs, options.refresh) if len(opened) == 1 else None
    classes = class_metrics(test, calibration) if options.per_class else {}
    return EvaluationResult(test, metrics, scaled, sets, unscaled, ood, corruptions, diagnosis, classes, calibration)


def _find_calibration(
    runs: Sequence[TrainedRun], names: Sequence[str], options: EvaluationOptions
) -> tuple[AnyCalibration | None, str]:
    """Return the calibration, or the reason why several runs have no common one."""
    how = (options.precision, options.refresh, options.tta)
    if len(runs) == 1:
        return calibrate(runs[0], *how), ""
    try:
        for run, name in zip(runs, names, strict=True):
            if not run.settings.data.validation:
                raise InputError(f"{name} held out no images for validation (data.validation is 0).")
        parts = [predict(run, "validation", *how) for run in runs]
        return pool_calibration(parts, names, options.weights), ""
    except InputError as error:
        return None, f"Not calibrated as an ensemble: {error}"


def evaluate_predictions(file: str | Path, per_class: bool = False) -> EvaluationResult:
    """Evaluate another program's ``.npz`` file (:func:`mixmo.evaluation.predictions.read_predictions`).

    Args:
        file: The file.
        per_class: Also compute metrics of each class.

    Raises:
        MissingError: if there is no such file.
        InputError: if it holds no predictions, or their average is not finite.
    """
    predictions = read_predictions(file)
    try:
        metrics = measure(predictions.logits, predictions.targets)
        return EvaluationResult(predictions, metrics, per_class=class_metrics(predictions) if per_class else {})
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def scaled_metrics(test: Predictions, calibration: AnyCalibration) -> dict[str, float]:
    """Return the temperature, its interval, and ``…_scaled`` metrics of averaged logits on the test set at it.

    Images with several labels also have ``…_tuned`` metrics, at the calibration's thresholds.
    """
    average = mean_logits(test.logits)
    if isinstance(calibration, LabelCalibration):
        scores = MultiLabelScores(calibration.thresholds, **ALONE)
        scores.update(average.double() / calibration.temperature, test.targets)
        values = {key: value.item() for key, value in scores.compute().items() if key != "map"}
        suffixes = {key: "scaled" if key in ("bce", "label_brier", "label_ece") else "tuned" for key in values}
        return {"temperature": calibration.temperature} | {f"{key}_{suffixes[key]}": values[key] for key in values}
    basic = basic_metrics(average / calibration.temperature, test.targets)
    metrics = {"temperature": calibration.temperature, "nll_scaled": basic["nll"], "ece_scaled": basic["ece"]}
    if calibration.interval is not None:
        metrics["temperature_low"], metrics["temperature_high"] = calibration.interval
    return metrics


def set_metrics(test: Predictions, calibration: ClassCalibration) -> dict[Sets, dict[str, float]]:
    """Return coverage and size on the test set for each kind of conformal sets.

    Keys are those of :func:`mixmo.metrics.conformal.measure_sets` with the nominal coverage appended, and
    ``set_rare_classes_95`` …, the number of classes in every set because they have too few validation images.
    """
    average, classes = mean_logits(test.logits), test.logits.shape[2]
    metrics: dict[Sets, dict[str, float]] = {sets: {} for sets in SETS}
    for sets, values in metrics.items():
        thresholds = torch.stack([calibration.set_thresholds(percent / 100, classes, sets) for percent in COVERAGES])
        parts = [
            prediction_sets(calibration.probabilities(part), thresholds[:, None], sets)
            for (part,) in in_chunks(average)
        ]
        for percent, chosen, threshold in zip(COVERAGES, torch.cat(parts, 1), thresholds, strict=True):
            measured = measure_sets(chosen, test.targets) | {"set_rare_classes": float(threshold.isinf().sum())}
            values |= {f"{key}_{percent}": value for key, value in measured.items()}
    return metrics


def ood_metrics(test: Predictions, other: Predictions) -> dict[str, dict[str, float]]:
    """Return OOD detection metrics by score."""
    metric = OutOfDistribution(**ALONE)
    metric.update(test.logits, out=False)
    metric.update(other.logits, out=True)
    values = metric.compute()
    return {score: {key: values[f"{score}/{key}"].item() for key in OutOfDistribution.descriptions} for score in SCORES}


def class_metrics(predictions: Predictions, calibration: AnyCalibration | None = None) -> dict[str, dict[str, float]]:
    """Return metrics of the averaged logits for each class, by name; NaN for a class without images.

    ``images``, ``accuracy`` and ``nll``; with a calibration also ``set_coverage_90`` and ``set_coverage_95``, which
    sets guarantee for all images together, not for each class. For several labels: ``images``, the number that have
    the label, and ``average_precision``.
    """
    if predictions.multi_label:
        precisions = average_precisions(mean_logits(predictions.logits), predictions.targets).tolist()
        counts = predictions.targets.sum(0).tolist()
        rows = [{"images": count, "average_precision": value} for count, value in zip(counts, precisions, strict=True)]
        return dict(zip(predictions.classes, rows, strict=True))
    samples, covered = predictions.average(), dict[str, torch.Tensor]()
    metrics: dict[str, dict[str, float]] = {}
    if isinstance(calibration, ClassCalibration):
        probabilities = calibration.probabilities(mean_logits(predictions.logits))
        for percent in COVERAGES:
            sets = prediction_sets(probabilities, calibration.set_thresholds(percent / 100, probabilities.shape[1]))
            covered[f"set_coverage_{percent}"] = sets.gather(1, predictions.targets[:, None])[:, 0].double()
    for number, name in enumerate(predictions.classes):
        mask = predictions.targets == number
        accuracy, nll = samples.right[mask].mean().item(), samples.nll[mask].mean().item()
        metrics[name] = {"images": int(mask.sum()), "accuracy": accuracy, "nll": nll}
        metrics[name] |= {key: hits[mask].mean().item() for key, hits in covered.items()}
    return metrics
