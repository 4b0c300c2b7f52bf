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
    """Return what was trained, its accuracy, confidence and cost, and a reference.

    Args:
        trained: The run.
        found: Its evaluation.
        ranges: Those of :func:`mixmo.evaluation.intervals.image_intervals`.
    """
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

    Args:
        metrics: Those of the average, and the diversity.
        ranges: Those of :func:`mixmo.evaluation.intervals.image_intervals`.
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

    Args:
        groups: What is compared.
        chosen: The name of the group that is best on validation data, if known.
    """
    images = groups[0].images
    first = next((group for group in groups if group.name == chosen), groups[0])
    others = [group for group in groups if group is not first]
    name = f"{first.name}, the best on validation data," if chosen == first.name else first.name
    if first.multi_label:
        return _precision_sentence(first, name, others, images)
    sentence = f"{name} classifies {_accuracy(first)} of {images} test images correctly"
    if not others:
        return f"{sentence} (ECE {METRICS['ece'].brief.text(first.mean('ece'))})."
    shown = "; ".join(_against(group, first) for group in others[:MOST])
    parts = [f"{sentence}; {shown}{'; the table has the others' if len(others) > MOST else ''}."]
    if len(others) == 1:
        parts += [_nll(others[0], first), _cost_ratio(others[0], first)]
    return " ".join(part for part in parts if part)


def _precision_sentence(first: Group, name: str, others: Sequence[Group], images: int) -> str:
    """Return the mean average precision of networks, and the differences, which have intervals over seeds only."""
    metric, parts = METRICS["map"].brief, []
    for group in others[:MOST]:
        gain, low, high = differences(group, first)["map"]
        change = f"{metric.number(gain, sign=True)} points {metric.interval(low, high, sign=True)}".strip()
        parts.append(f"{group.name} {metric.text(group.mean('map'))}, {change}{_doubt(low, high)}")
    more = "; the table has the others" if len(others) > MOST else ""
    reached = f"{name} reaches a mean average precision of {metric.text(first.mean('map'))} on {images} test images"
    return f"{'; '.join([reached, *parts])}{more}."


def _accuracy(group: Group) -> str:
    value = ACCURACY.number(group.mean("accuracy"))
    if len(group.entries) > 1:
        return f"{value} ± {ACCURACY.number(group.deviation('accuracy'))} % (n = {len(group.entries)})"
    ranges = image_intervals(group.entries[0].result.predictions)
    return f"{value} % {ACCURACY.interval(*ranges.get('accuracy', UNKNOWN))}"


def _against(group: Group, first: Group) -> str:
    gain, low, high = differences(group, first)["accuracy"]
    interval = ACCURACY.interval(low, high, sign=True) or "without an interval"
    more = f"{ACCURACY.number(gain, sign=True)} points {interval}"
    return f"{group.name} {_accuracy(group)}, {more}{_doubt(low, high)}"


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
