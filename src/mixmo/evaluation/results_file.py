"""``test.json``: reading, merging and writing of a run's metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import load_kept_predictions
from mixmo.evaluation.results import EvaluationOptions, EvaluationResult, OODResult, evaluate_runs
from mixmo.evaluation.robustness import CorruptionResult
from mixmo.metrics.ood import SCORES, OutOfDistribution
from mixmo.runs import RunFolder

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
    write_results(run.folder, result, options)
    return result


def write_results(run: RunFolder, result: EvaluationResult, options: EvaluationOptions) -> Path:
    """Write ``test.json`` into a run's folder, whole or not at all; what is not defined (NaN) becomes null."""
    content: dict[str, Any] = dict(result.flat())
    if result.corruptions is not None:
        content["corruptions"] = {"source": result.corruptions.source, "kinds": result.corruptions.kinds}
    if result.per_class:
        content["per_class"] = result.per_class
    content["about"] = {
        "run": str(run.path),
        "dataset": run.settings().data.name,
        "images": len(result.predictions.targets),
        "test_images": result.predictions.images,
        "training_images": run.training_images(),
        "checkpoint": options.checkpoint,
        "digest": run.digest(options.checkpoint),
        "epochs": result.predictions.epochs,
        "precision": options.precision,
        "tta": options.tta,
        "conventions": CONVENTIONS,
    }
    return run.write_json("test.json", content)


def with_earlier(trained: TrainedRun, result: EvaluationResult, options: EvaluationOptions) -> EvaluationResult:
    """Return a run's evaluation with what else ``test.json`` holds: corruptions, OOD datasets, metrics of classes.

    Only results of the same checkpoint, precision, views and test images are taken, and only for what is not evaluated
    now. A file that is missing or damaged adds nothing.
    """
    run = trained.folder
    try:
        known: Mapping[str, Any] = run.read_json("test.json")
        about = known["about"]
        own = {"digest": run.digest(options.checkpoint), "precision": options.precision, "tta": options.tta,
               "test_images": result.predictions.images}  # fmt: skip
        if any(about[key] != value for key, value in own.items()):
            return result
        corruptions = result.corruptions
        if corruptions is None and "corruptions" in known:
            corruptions = CorruptionResult.from_json(known["corruptions"])
        ood = _ood(known, trained, options) | result.ood
        per_class = result.per_class or {
            str(name): {str(key): _number(value) for key, value in metrics.items()}
            for name, metrics in known.get("per_class", {}).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return result
    return replace(result, corruptions=corruptions, ood=ood, per_class=per_class)


def _ood(known: Mapping[str, Any], trained: TrainedRun, options: EvaluationOptions) -> dict[str, OODResult]:
    """Return earlier results for other datasets whose predictions are cached."""
    keys = tuple(OutOfDistribution.descriptions)
    ends = [f"/{score}/{key}" for score in SCORES for key in keys]
    names = dict.fromkeys(key.removeprefix("ood/").removesuffix(ends[0]) for key in known if key.endswith(ends[0]))
    found = {}
    for name in names:
        metrics = {score: {key: _number(known[f"ood/{name}/{score}/{key}"]) for key in keys} for score in SCORES}
        kept = load_kept_predictions(trained, name, options.precision, options.tta)
        if kept is not None:
            found[name] = OODResult(kept, metrics)
    return found


def _number(value: Any) -> float:
    """Return a number of ``test.json``, in which null stands for NaN."""
    if value is None:
        return math.nan
    return value if isinstance(value, int) else float(value)
