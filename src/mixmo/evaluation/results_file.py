"""``test.json``: reading, merging and writing a run's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixmo.data.given import GIVEN
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import load_cached_predictions
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
    """Evaluate a run on its test set, merge earlier results of ``test.json``, write it and return the result."""
    options = options or EvaluationOptions()
    result = merge_earlier(run, evaluate_runs([run], options), options)
    write_results(run, result, options)
    return result


def write_results(run: TrainedRun, result: EvaluationResult, options: EvaluationOptions) -> Path:
    """Write ``test.json`` into a run's folder, atomically; NaN becomes null."""
    content: dict[str, Any] = dict(result.flat())
    if result.corruptions is not None:
        content["corruptions"] = {"source": result.corruptions.source, "kinds": result.corruptions.kinds}
    if result.per_class:
        content["per_class"] = result.per_class
    content["about"] = {
        "run": str(run.path),
        "dataset": GIVEN if run.suffix else run.settings.data.name,
        "images": len(result.predictions.targets),
        "test_images": result.predictions.images,
        "test_fingerprint": _fingerprint(run, result),
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


def _fingerprint(run: TrainedRun, result: EvaluationResult) -> str:
    """Return the fingerprint of the test images, with the times of their files; images from Python have none."""
    return str(run.depends_on("test").get("fingerprint", result.predictions.images))


def tested_checkpoint(run: TrainedRun) -> str:
    """Return the digest of the checkpoint whose metrics ``test.json`` has; empty if the file is missing or damaged."""
    try:
        return str(run.folder.read_json("test.json")["about"]["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def merge_earlier(run: TrainedRun, result: EvaluationResult, options: EvaluationOptions) -> EvaluationResult:
    """Add to a run's evaluation what only ``test.json`` has: corruptions, OOD datasets, metrics of each class.

    Only results for the same checkpoint, precision, views and test images are added. A missing or damaged file adds
    nothing.
    """
    expected = {"digest": run.digest, "precision": options.precision, "tta": options.tta,
                "test_fingerprint": _fingerprint(run, result)}  # fmt: skip
    try:
        earlier: Mapping[str, Any] = run.folder.read_json("test.json")
        about = earlier["about"]
        if any(about[key] != value for key, value in expected.items()):
            return result
        corruptions = result.corruptions
        if corruptions is None and "corruptions" in earlier:
            corruptions = CorruptionResult.from_json(earlier["corruptions"])
        others = [str(name) for name in about.get("ood", []) if name not in result.ood]
        with_classes = "per_class" in earlier
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return result
    ood = dict(result.ood)
    for name in others:
        if (cached := load_cached_predictions(run, name, options.precision, options.tta)) is not None:
            ood[name] = OODResult(cached, ood_metrics(result.predictions, cached))
    per_class = result.per_class or (class_metrics(result.predictions, result.calibration) if with_classes else {})
    return replace(result, corruptions=corruptions, ood=ood, per_class=per_class)
