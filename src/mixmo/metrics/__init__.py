"""Figures of merit for ensembles: proper scores, calibration, diversity."""

from mixmo.metrics.calibration import expected_calibration_error
from mixmo.metrics.diversity import disagreement, error_ratio
from mixmo.metrics.scores import accuracy, brier_score, negative_log_likelihood

__all__ = [
    "accuracy",
    "brier_score",
    "disagreement",
    "error_ratio",
    "expected_calibration_error",
    "negative_log_likelihood",
]
