"""The descriptions of all metrics, costs and diagnoses, by their keys in files."""

from __future__ import annotations

from dataclasses import replace

from mixmo.metrics.calibration_errors import Calibration
from mixmo.metrics.description import Description, Descriptions, describe_share
from mixmo.metrics.diversity import Diversity
from mixmo.metrics.multi_label import MultiLabelScores
from mixmo.metrics.ood import OutOfDistribution
from mixmo.metrics.scores import Scores
from mixmo.metrics.selective import SelectivePrediction

PER_NETWORK: Descriptions = {
    **Scores.descriptions,
    **Calibration.descriptions,
    **SelectivePrediction.descriptions,
    **MultiLabelScores.descriptions,
}
"""Metrics of the average and of each member."""

DIVERSITY: Descriptions = {
    **Diversity.descriptions,
    "label_disagreement": describe_share(
        "Disagreement on labels", "Share of labels on which two members disagree, mean over pairs.", None
    ),
}
"""Metrics of two or more members together."""

DIAGNOSIS: Descriptions = {
    "selectivity": describe_share(
        "Selectivity of members",
        "Share of the variance of a member's logits on mixtures that is due to its own image, mean over members: 100 % "
        "if members are separate, 1 / M if they are copies of each other.",
        None,
        digits=1,
    ),
    "separate_units": describe_share(
        "Separate units",
        "Share of the units before the heads with at least three quarters of their variance due to one member's image.",
        None,
        digits=1,
    ),
    "train_accuracy": describe_share(
        "Training accuracy",
        "Accuracy on the augmented mixtures of training in the checkpoint's epoch, mean over members.",
        None,
        digits=1,
    ),
}
"""Metrics of the diagnosis."""


def _variant(key: str, name: str, meaning: str) -> Description:
    """Return the description of a metric under another condition; ``{}`` stands for the metric's name."""
    metric = PER_NETWORK[key]
    return replace(metric, name=name.format(metric.name), meaning=meaning.format(metric.name))


def _describe_sets(percent: int) -> Descriptions:
    coverage = f"Share of {percent} % conformal sets that contain the true class."
    least = f"Coverage of {percent} % conformal sets for the class that they cover least."
    size = f"Mean number of classes in a {percent} % conformal set."
    rare = f"Number of classes in every {percent} % set, as they have too few validation images to be left out."
    return {
        f"set_coverage_{percent}": describe_share(f"Coverage of {percent} % sets", coverage, None),
        f"set_coverage_class_{percent}": describe_share(f"Least coverage of a class, {percent} % sets", least, None),
        f"set_size_{percent}": Description(f"Size of {percent} % sets", size, False, digits=2),
        f"set_rare_classes_{percent}": Description(f"Classes in every {percent} % set", rare, False, digits=0),
    }


SCALED: Descriptions = {
    "temperature": Description(
        "Temperature", "Fitted on the validation set; above 1 the network is overconfident, below 1 underconfident."
    ),
    **{
        f"temperature_{key}": Description(f"Temperature, {words}", f"{end} 95 % profile-likelihood limit.")
        for key, words, end in (("low", "at least", "Lower"), ("high", "at most", "Upper"))
    },
    **{
        f"{key}_scaled": _variant(key, "{} after temperature scaling", "{} at the validation set's temperature.")
        for key in ("nll", "ece", "bce", "label_brier", "label_ece")
    },
    **{
        f"{key}_tuned": _variant(
            key, "{} with thresholds", "{} at the threshold of each class that maximises F1 on the validation set."
        )
        for key in ("f1_micro", "f1_macro", "exact_match", "hamming_loss")
    },
    **_describe_sets(90),
    **_describe_sets(95),
    **{
        f"{key}_two_fold": _variant(
            key,
            "{} after two-fold scaling",
            "{} with each half of the test set scaled by the temperature fitted on the other half.",
        )
        for key in ("nll", "ece")
    },
}
"""Metrics after temperature scaling."""

CORRUPTED: Descriptions = {
    f"corruption/{key}": _variant(key, name, "{}, mean over all kinds and severities of corruption.")
    for key, name in (("accuracy", "Corrupted accuracy"), ("nll", "Corrupted NLL"), ("ece", "Corrupted ECE"))
}
"""Means over all corruptions."""

COSTS: Descriptions = {
    "parameters": Description("Parameters", "Number of parameters at inference.", False, "M", 1e-6, 2),
    "macs": Description("MACs", "Multiply–accumulate operations for one image.", False, "M", 1e-6, 1),
    "latency_ms": Description(
        "Latency",
        "Time per image in a batch of 64 on this machine's CPU; a single short measurement, which varies with load.",
        None,
        "ms",
        digits=2,
    ),
    "images": Description("Training images", "Images passed through the network in training.", False, "M", 1e-6, 2),
    "minutes": Description(
        "Training time", "Wall-clock time of training, on the machine that trained it.", None, "min", digits=1
    ),
}
"""Costs of training and inference."""

METRICS: Descriptions = {
    **PER_NETWORK,
    "average_precision": describe_share("Average precision", "Area under a class's precision–recall curve.", True),
    **DIVERSITY,
    **DIAGNOSIS,
    **SCALED,
    **CORRUPTED,
    **OutOfDistribution.descriptions,
    **COSTS,
}
"""All of the above."""
