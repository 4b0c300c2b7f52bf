"""Metrics as torchmetrics classes, accumulated in float64 over batches and processes.

All take probabilities (B, K), or those of M members (B, M, K), and class numbers (B,); metrics of images with
several labels take logits (B, K) and 0 or 1 for each class. ``compute`` returns a dict of float64 scalars by the
names of ``test.json``. A metric that is not defined (a ratio over nothing) is NaN.
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
