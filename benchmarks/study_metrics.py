"""The metrics in the rows of a study."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from mixmo.evaluation.calibration import fit_calibration
from mixmo.evaluation.predictions import Predictions
from mixmo.evaluation.results import EvaluationResult
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.conformal import prediction_sets

METRICS = (
    "accuracy", "nll", "brier", "ece", "aurc", "nll_two_fold", "ece_two_fold", "d_re", "disagreement", "selectivity",
    "separate_units", "train_accuracy",
)  # fmt: skip
VALIDATED = ("nll_scaled", "ece_scaled", "set_coverage_95", "set_size_95")
"""Of single networks with a validation set."""
CORRUPTED = {f"corrupted_{key}": f"corruption/{key}" for key in ("accuracy", "nll", "ece")}
OOD = {"ood_auroc": "auroc", "ood_fpr95": "fpr95"}
"""Detection by the largest probability, averaged over the out-of-distribution datasets."""


def metrics_of(found: EvaluationResult, validated: bool) -> dict[str, float]:
    """Return a row's metrics of an evaluation, NaN for those that are not defined.

    Args:
        found: The evaluation.
        validated: Whether the network held out images for validation.
    """
    flat = found.flat()
    known = {key: flat.get(key, math.nan) for key in METRICS}
    known["set_size_95_two_fold"] = set_size_two_fold(found.predictions, 0.95)
    known["member_accuracy"] = statistics.fmean(each["accuracy"] for each in found.metrics.members)
    if validated:
        known |= {key: flat.get(key, math.nan) for key in VALIDATED}
    if found.corruptions is not None:
        known |= {key: flat[name] for key, name in CORRUPTED.items()}
    if found.ood:
        scores = [result.metrics["max_probability"] for result in found.ood.values()]
        known |= {key: statistics.fmean(each[name] for each in scores) for key, name in OOD.items()}
    return known


def set_size_two_fold(predictions: Predictions, coverage: float) -> float:
    """Return the mean size of conformal sets, with temperature and threshold of each half fitted on the other half.

    Args:
        predictions: Of two or more images; even and odd positions are the halves.
        coverage: The share of sets that should contain the true class.

    Example:
        >>> import torch
        >>> known = 4 * torch.eye(3)[torch.arange(60) % 3]
        >>> set_size_two_fold(Predictions(known[:, None], torch.arange(60) % 3, ["a", "b", "c"]), 0.9)
        1.0
    """
    average, targets, sizes = mean_logits(predictions.logits), predictions.targets, 0
    for half in (0, 1):
        other = fit_calibration(average[1 - half :: 2], targets[1 - half :: 2])
        thresholds = other.set_thresholds(coverage, average.shape[1])
        sets = prediction_sets(other.probabilities(average[half::2]), thresholds)
        sizes += int(sets.sum())
    return sizes / len(targets)


def as_cells(values: Mapping[str, float]) -> dict[str, str]:
    """Format numbers for a CSV file, NaN as an empty cell.

    Example:
        >>> as_cells({"nll": 0.12345678, "macs": 18126080.0, "d_re": math.nan})
        {'nll': '0.123457', 'macs': '18126080', 'd_re': ''}
    """
    return {key: "" if math.isnan(value) else f"{value:.{10 if value > 1e5 else 6}g}" for key, value in values.items()}
