"""The summary sentences that pages begin with, and the headline metrics of a run's page."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mixmo.config.recipes import method_name
from mixmo.errors import reason
from mixmo.escaping import printable
from mixmo.evaluation.comparison import Group
from mixmo.evaluation.costs import network_size
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.intervals import UNKNOWN, Interval, image_intervals
from mixmo.evaluation.results import EvaluationResult
from mixmo.metrics.catalogue import METRICS
from mixmo.reporting.comparison_tables import differences
from mixmo.reporting.tables import LABELS_MAIN, MAIN, calibration_sentence

logger = logging.getLogger("mixmo")

MOST = 3
"""Networks that are named in addition to the first."""
ACCURACY = METRICS["accuracy"].brief


def backbone_name(name: str) -> str:
    """Return a backbone's name as papers write it, if it is in one.

    Example:
        >>> backbone_name("wide_resnet10_1"), backbone_name("resnet50"), backbone_name("efficientnet_b0")
        ('WideResNet-10-1', 'ResNet-50', 'efficientnet_b0')
    """
    found = re.fullmatch(r"(wide_|preact_)?resnet(\d+)(?:_(\d+))?", name)
    if found is None:
        return name
    family = {"wide_": "Wide", "preact_": "PreAct", None: ""}[found[1]]
    return f"{family}ResNet-{found[2]}{f'-{found[3]}' if found[3] else ''}"


def run_sentence(trained: TrainedRun, found: EvaluationResult, ranges: Mapping[str, Interval]) -> str:
    """Return what was trained, its accuracy, confidence and cost, and a reference."""
    run = trained.folder
    config, metrics = run.trained_config(), found.metrics.average
    backbone = backbone_name(str(config["model"]["backbone"]))
    count = run.training_images()
    learned = "" if count is None else f", trained on {count} images,"
    members, method = config["model"]["num_members"], method_name(config)
    what = f"A {method}" if members == 1 else f"{method} with {members} members"
    if found.predictions.multi_label:
        shown = METRICS["map"].brief.text(metrics["map"])
        return (
            f"{what} on {backbone}{learned} reaches a mean average precision of {shown} on "
            f"{len(found.predictions.targets)} test images with any of {len(found.predictions.classes)} labels"
            f"{_costs(trained)}. {calibration_sentence(found.scaled)}"
        ).strip()
    sentences = [
        f"{what} on {backbone}{learned} classifies {ACCURACY.number(metrics['accuracy'])} % "
        f"{ACCURACY.interval(*ranges['accuracy'])} of {len(found.predictions.targets)} test images correctly; "
        f"{_confidence(found)}{_costs(trained)}.",
        _reference(found),
    ]
    return " ".join(sentences)


def _confidence(found: EvaluationResult) -> str:
    samples = found.predictions.average()
    gap = 100 * float(samples.confidence.mean() - samples.right.mean())
    ece = METRICS["ece"].brief.text(found.metrics.average["ece"])
    if found.scaled:
        ece += f"; {METRICS['ece'].brief.text(found.scaled['ece_scaled'])} after calibration, as mixmo predict gives it"
    if abs(gap) < 0.05:
        return f"its mean confidence equals its accuracy (ECE {ece})"
    return f"its mean confidence is {abs(gap):.1f} points {'above' if gap > 0 else 'below'} its accuracy (ECE {ece})"


def _costs(trained: TrainedRun) -> str:
    """Return the costs as the end of a sentence; nothing, and a warning, if they cannot be counted."""
    try:
        found = network_size(trained)
    except Exception as error:  # a page without its costs is better than none
        logger.warning("%s", printable(f"The costs of {trained.path} could not be counted: {reason(error)}."))
        return ""
    parameters, macs = (METRICS[key].text(found[key]) for key in ("parameters", "macs"))
    one = ", as one network" if trained.settings.model.num_members > 1 else ""
    return f"; it costs {parameters} parameters and {macs} MACs an image{one}"


def _reference(found: EvaluationResult) -> str:
    """Return a reference for the accuracy: that of each member alone, or of the most frequent class."""
    members = [100 * member["accuracy"] for member in found.metrics.members]
    if len(members) > 1:
        low, high = f"{min(members):.1f}", f"{max(members):.1f}"
        return f"Alone, its members reach {low if low == high else f'{low} to {high}'} %."
    share = 100 * np.bincount(found.predictions.targets.numpy()).max() / len(found.predictions.targets)
    return f"The most frequent class alone would reach {share:.1f} %."


def cards(metrics: Mapping[str, float], ranges: Mapping[str, Interval]) -> Sequence[dict[str, str]]:
    """Return the metrics that matter, each with its meaning, and its interval where it has one.

    Balanced accuracy is among them where it differs from accuracy, as for imbalanced test sets.
    """
    return [
        {
            "heading": METRICS[key].heading,
            "help": METRICS[key].help,
            "value": METRICS[key].brief.text(metrics[key]),
            "interval": METRICS[key].brief.interval(*ranges.get(key, UNKNOWN)),
        }
        for key in (*MAIN, *LABELS_MAIN, "balanced_accuracy", "d_re", "disagreement", "label_disagreement")
        if key in metrics and (key != "balanced_accuracy" or not math.isclose(metrics[key], metrics["accuracy"]))
    ]


def comparison_sentence(groups: Sequence[Group], chosen: str = "") -> str:
    """Return how many test images a network classifies correctly, and how the others differ from it.

    That network is the best on validation data if known, else the first: the test set chooses no winner.
    """
    first = next((group for group in groups if group.name == chosen), groups[0])
    others = [group for group in groups if group is not first]
    name = f"{first.name}, the best on validation data," if chosen == first.name else first.name
    images = f"{groups[0].images} test images"
    if first.multi_label:
        parts = [f"{name} reaches a mean average precision of {_value(first)} on {images}"]
    else:
        parts = [f"{name} classifies {_value(first)} of {images} correctly"]
        if not others:
            parts[0] += f" (ECE {METRICS['ece'].brief.text(first.mean('ece'))})"
    parts += [_against(group, first) for group in others[:MOST]]
    sentences = ["; ".join([*parts, *["the table has the others"] * (len(others) > MOST)]) + "."]
    if len(others) == 1 and not first.multi_label:
        sentences += [_nll(others[0], first), _cost_ratio(others[0], first)]
    return " ".join(sentence for sentence in sentences if sentence)


def _value(group: Group) -> str:
    """Return a group's accuracy with its spread or interval, or its mean average precision."""
    if group.multi_label:
        return METRICS["map"].brief.text(group.mean("map"))
    value = ACCURACY.number(group.mean("accuracy"))
    if len(group.entries) > 1:
        return f"{value} ± {ACCURACY.number(group.deviation('accuracy'))} % (n = {len(group.entries)})"
    ranges = image_intervals(group.entries[0].result.predictions)
    return f"{value} % {ACCURACY.interval(*ranges['accuracy'])}"


def _against(group: Group, first: Group) -> str:
    key = "map" if first.multi_label else "accuracy"
    metric, (gain, low, high) = METRICS[key].brief, differences(group, first)[key]
    interval = metric.interval(low, high, sign=True) or "without an interval"
    return f"{group.name} {_value(group)}, {metric.number(gain, sign=True)} points {interval}{_doubt(low, high)}"


def _nll(group: Group, first: Group) -> str:
    metric, (gain, low, high) = METRICS["nll"].brief, differences(group, first)["nll"]
    if math.isnan(low):
        return ""
    change = f"{metric.number(gain, sign=True)} {metric.interval(low, high, sign=True)}"
    return (
        f"The NLL (log loss) of {group.name} is {metric.number(group.mean('nll'))}, {change} against {first.name}"
        f"{_doubt(low, high)}."
    )


def _doubt(low: float, high: float) -> str:
    return " (the difference may be chance)" if low <= 0 <= high else ""


def _cost_ratio(group: Group, first: Group) -> str:
    """Return the ratio of their MACs; nothing if it is unknown."""
    own, others = group.mean("macs"), first.mean("macs")
    if math.isnan(own) or math.isnan(others):
        return ""
    ratio = own / others
    if 0.95 < ratio < 1.05:
        return f"Both cost {METRICS['macs'].text(own)} MACs an image, within 5 %."
    return f"{group.name} costs {ratio:.2g} times the MACs of {first.name} ({METRICS['macs'].text(own)} an image)."
