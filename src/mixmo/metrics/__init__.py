"""Metrics as torchmetrics classes, accumulated in float64 over batches and processes.

Single-label metrics take probabilities (B, K), or (B, M, K) of M members, and class numbers (B,); multi-label and
OOD metrics take logits. ``compute`` returns a dict of float64 scalars with the keys of ``test.json``. Undefined metrics
(division by zero) are NaN.
"""

from mixmo.metrics.calibration_errors import Calibration
from mixmo.metrics.diversity import Diversity
from mixmo.metrics.multi_label import MultiLabelScores
from mixmo.metrics.ood import OutOfDistribution
from mixmo.metrics.scores import Scores
from mixmo.metrics.selective import SelectivePrediction
from mixmo.metrics.temperature import fit_temperature

__all__ = [
    "Calibration",
    "Diversity",
    "MultiLabelScores",
    "OutOfDistribution",
    "Scores",
    "SelectivePrediction",
    "fit_temperature",
]
