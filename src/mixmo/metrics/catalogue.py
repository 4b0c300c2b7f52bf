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
        "Disagreement on labels", "Share of the labels that two members decide differently, mean over pairs.", None
    ),
}
"""Metrics of several members together."""

DIAGNOSIS: Descriptions = {
    "selectivity": describe_share(
        "Selectivity of members",
        "Share of the variance of a member's logits in mixtures that its own image causes, mean over members: all if "
        "they are separate, 1 / M if they are copies.",
        None,
        digits=1,
    ),
    "separate_units": describe_share(
        "Separate units",
        "Share of the units before the heads that vary with one member's image, by three quarters of their variance or "
        "more.",
        None,
        digits=1,
    ),
    "train_accuracy": describe_share(
        "Training accuracy",
        "Mean over members in the checkpoint's epoch, on the augmented mixtures of training.",
        None,
        digits=1,
    ),
}
"""Metrics of the diagnosis."""


def _variant(key: str, name: str, meaning: str) -> Description:
    """Return the description of a metric under another condition; ``{}`` stands for its own name."""
    own = PER_NETWORK[key]
    return replace(own, name=name.format(own.name), meaning=meaning.format(own.name))


def _describe_sets(percent: int) -> Descriptions:
    coverage = f"Share of conformal sets for {percent} % that hold the true class."
    least = f"Coverage of {percent} % sets for the least covered class."
    size = f"Mean number of classes in conformal sets for {percent} %."
    rare = f"Classes in every {percent} % set, since validation images are too few to leave them out."
    return {
        f"set_coverage_{percent}": describe_share(f"Coverage of {percent} % sets", coverage, None),
        f"set_coverage_class_{percent}": describe_share(f"Least coverage of a class, {percent} % sets", least, None),
        f"set_size_{percent}": Description(f"Size of {percent} % sets", size, False, digits=2),
        f"set_rare_classes_{percent}": Description(f"Classes in every {percent} % set", rare, False, digits=0),
    }


SCALED: Descriptions = {
    "temperature": Description(
        "Temperature", "Fitted on the validation set; above 1 the network is too confident, below 1 too cautious."
    ),
    **{
        f"temperature_{end}": Description(f"Temperature, {words}", "End of its 95 % profile-likelihood interval.")
        for end, words in (("low", "at least"), ("high", "at most"))
    },
    **{
        f"{key}_scaled": _variant(key, "{} after temperature scaling", "{} at the temperature of the validation set.")
        for key in ("nll", "ece", "bce", "label_brier", "label_ece")
    },
    **{
        f"{key}_tuned": _variant(
            key, "{} with thresholds", "{} with the threshold of each class that is best for F1 on the validation set."
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
    "parameters": Description("Parameters", "Weights of the network at inference.", False, "M", 1e-6, 2),
    "macs": Description("MACs", "Multiply–accumulate operations for one image.", False, "M", 1e-6, 1),
    "latency_ms": Description(
        "Latency",
        "Time for an image in a batch of 64, on this machine's CPU; one short measurement, which varies with its load.",
        None,
        "ms",
        digits=2,
    ),
    "images": Description("Training images", "Images passed through the network in training.", False, "M", 1e-6, 2),
    "minutes": Description(
        "Training time", "Wall time of training, on the machine that trained it.", None, "min", digits=1
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
"""All of them."""
