"""``test.json``: reading, merging and writing of a run's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import load_kept_predictions
from mixmo.evaluation.results import (
    EvaluationOptions,
    EvaluationResult,
    OODResult,
    class_metrics,
    evaluate_runs,
    ood_metrics,
)
from mixmo.evaluation.robustness import CorruptionResult

CONVENTIONS = {
    "accuracy": "share, 0 to 1",
    "nll": "nats",
    "bce": "nats, mean over images and classes",
    "map": "mean over the classes that an image has",
    "tuned": "at the threshold of each class that is best for F1 on the validation set",
    "brier": "summed over classes; brier_per_class is divided by K, as in the paper's code",
    "ece": "15 equal bins, lo < confidence <= hi, top label",
    "misclassification_auroc": "right predictions are the positive class, confidence is the score",
    "d_re": "errors of exactly one of two members / errors of both, mean over pairs",
    "two_fold": "each half of the test set scaled by the temperature of the other",
    "scaled": "scaled by the temperature fitted on the validation set",
    "ood": "the other dataset is the positive class",
    "corruption": "mean over all kinds and severities; each is in `corruptions`",
}
"""Conventions of the metrics, written into ``test.json``."""


def evaluate_run(run: TrainedRun, options: EvaluationOptions | None = None) -> EvaluationResult:
    """Evaluate one run on its test set, write ``test.json``, and return both with what earlier calls found."""
    options = options or EvaluationOptions()
    result = with_earlier(run, evaluate_runs([run], options), options)
    write_results(run, result, options)
    return result


def write_results(run: TrainedRun, result: EvaluationResult, options: EvaluationOptions) -> Path:
    """Write ``test.json`` into a run's folder, whole or not at all; what is not defined (NaN) becomes null."""
    content: dict[str, Any] = dict(result.flat())
    if result.corruptions is not None:
        content["corruptions"] = {"source": result.corruptions.source, "kinds": result.corruptions.kinds}
    if result.per_class:
        content["per_class"] = result.per_class
    content["about"] = {
        "run": str(run.path),
        "dataset": run.settings.data.name,
        "images": len(result.predictions.targets),
        "test_images": result.predictions.images,
        "training_images": run.folder.training_images(),
        "checkpoint": options.checkpoint,
        "digest": run.digest,
        "epochs": result.predictions.epochs,
        "precision": options.precision,
        "tta": options.tta,
        "ood": list(result.ood),
        "conventions": CONVENTIONS,
    }
    return run.folder.write_json("test.json", content)


def with_earlier(trained: TrainedRun, result: EvaluationResult, options: EvaluationOptions) -> EvaluationResult:
    """Return a run's evaluation with what else ``test.json`` holds: corruptions, OOD datasets, metrics of classes.

    Only results of the same checkpoint, precision, views and test images are taken, and only for what is not evaluated
    now. A file that is missing or damaged adds nothing.
    """
    try:
        known: Mapping[str, Any] = trained.folder.read_json("test.json")
        about = known["about"]
        own = {"digest": trained.digest, "precision": options.precision, "tta": options.tta,
               "test_images": result.predictions.images}  # fmt: skip
        if any(about[key] != value for key, value in own.items()):
            return result
        corruptions = result.corruptions
        if corruptions is None and "corruptions" in known:
            corruptions = CorruptionResult.from_json(known["corruptions"])
        others = [str(name) for name in about.get("ood", []) if name not in result.ood]
        with_classes = "per_class" in known
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return result
    ood = dict(result.ood)
    for name in others:
        if (cached := load_kept_predictions(trained, name, options.precision, options.tta)) is not None:
            ood[name] = OODResult(cached, ood_metrics(result.predictions, cached))
    per_class = result.per_class or (class_metrics(result.predictions, result.calibration) if with_classes else {})
    return replace(result, corruptions=corruptions, ood=ood, per_class=per_class)
