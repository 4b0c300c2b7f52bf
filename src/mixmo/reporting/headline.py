"""The summaries at the top of pages, and the metric cards of a run's page."""

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
from mixmo.reporting.tables import LABELS_MAIN, MAIN, describe_calibration

logger = logging.getLogger("mixmo")

MOST_OTHERS = 3
"""Largest number of networks that are compared with the first."""
ACCURACY = METRICS["accuracy"].brief


def backbone_name(name: str) -> str:
    """Return a backbone's name as papers write it, if it is a ResNet.

    Example:
        >>> backbone_name("wide_resnet10_1"), backbone_name("resnet50"), backbone_name("efficientnet_b0")
        ('WideResNet-10-1', 'ResNet-50', 'efficientnet_b0')
    """
    match = re.fullmatch(r"(wide_|preact_)?resnet(\d+)(?:_(\d+))?", name)
    if match is None:
        return name
    family = {"wide_": "Wide", "preact_": "PreAct", None: ""}[match[1]]
    return f"{family}ResNet-{match[2]}{f'-{match[3]}' if match[3] else ''}"


def summarise_run(trained: TrainedRun, result: EvaluationResult, intervals: Mapping[str, Interval]) -> str:
    """Describe what was trained, its accuracy, confidence and cost, and a reference for the accuracy."""
    run, images, metrics = trained.folder, len(result.predictions.targets), result.metrics.average
    config, count = run.trained_config(), run.training_images()
    members, method = config["model"]["num_members"], method_name(config)
    network = f"A {method}" if members == 1 else f"{method} with {members} members"
    network += f" on {backbone_name(str(config['model']['backbone']))}"
    network += "" if count is None else f", trained on {count} images,"
    if result.predictions.multi_label:
        return (
            f"{network} reaches a mean average precision of {METRICS['map'].brief.text(metrics['map'])} on {images} "
            f"test images with any of {len(result.predictions.classes)} labels{_costs(trained)}. "
            f"{describe_calibration(result.scaled)}"
        ).strip()
    return (
        f"{network} classifies {ACCURACY.number(metrics['accuracy'])} % {ACCURACY.interval(*intervals['accuracy'])} of "
        f"{images} test images correctly; {_confidence(result)}{_costs(trained)}. {_reference(result)}"
    )


def _confidence(result: EvaluationResult) -> str:
    samples = result.predictions.average()
    gap = 100 * float(samples.confidence.mean() - samples.right.mean())
    ece = METRICS["ece"].brief.text(result.metrics.average["ece"])
    if result.scaled:
        scaled = METRICS["ece"].brief.text(result.scaled["ece_scaled"])
        ece += f"; {scaled} after calibration, as in mixmo predict"
    if abs(gap) < 0.05:
        return f"its mean confidence equals its accuracy (ECE {ece})"
    return f"its mean confidence is {abs(gap):.1f} points {'above' if gap > 0 else 'below'} its accuracy (ECE {ece})"


def _costs(trained: TrainedRun) -> str:
    """Return the costs as a clause; if they cannot be counted, log a warning and return nothing."""
    try:
        size = network_size(trained)
    except Exception as error:  # a page without costs is better than none
        logger.warning("%s", printable(f"The costs of {trained.path} could not be counted: {reason(error)}."))
        return ""
    parameters, macs = (METRICS[key].text(size[key]) for key in ("parameters", "macs"))
    fused = ", as one network" if trained.settings.model.num_members > 1 else ""
    return f"; it has {parameters} parameters and takes {macs} MACs per image{fused}"


def _reference(result: EvaluationResult) -> str:
    """Return the accuracy of each member alone, or of predicting the most frequent class, for reference."""
    members = [100 * member["accuracy"] for member in result.metrics.members]
    if len(members) > 1:
        low, high = f"{min(members):.1f}", f"{max(members):.1f}"
        return f"Alone, its members reach {low if low == high else f'{low} to {high}'} %."
    share = 100 * np.bincount(result.predictions.targets.numpy()).max() / len(result.predictions.targets)
    return f"The most frequent class alone would reach {share:.1f} %."


def metric_cards(metrics: Mapping[str, float], intervals: Mapping[str, Interval]) -> Sequence[dict[str, str]]:
    """Return the main metrics, each with its meaning and interval, if any.

    Balanced accuracy is included if it differs from accuracy, as on imbalanced test sets.
    """
    return [
        {
            "heading": METRICS[key].heading,
            "help": METRICS[key].help,
            "value": METRICS[key].brief.text(metrics[key]),
            "interval": METRICS[key].brief.interval(*intervals.get(key, UNKNOWN)),
        }
        for key in (*MAIN, *LABELS_MAIN, "balanced_accuracy", "d_re", "disagreement", "label_disagreement")
        if key in metrics and (key != "balanced_accuracy" or not math.isclose(metrics[key], metrics["accuracy"]))
    ]


def summarise_comparison(groups: Sequence[Group], chosen: str = "") -> str:
    """Describe the accuracy of a network, and how the others differ from it.

    That network is ``chosen``, the best on validation data, or else the first: the test set never selects one.
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
    parts += [_difference(group, first) for group in others[:MOST_OTHERS]]
    sentences = ["; ".join([*parts, *["the table has the others"] * (len(others) > MOST_OTHERS)]) + "."]
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
    intervals = image_intervals(group.entries[0].result.predictions)
    return f"{value} % {ACCURACY.interval(*intervals['accuracy'])}"


def _difference(group: Group, first: Group) -> str:
    key = "map" if first.multi_label else "accuracy"
    metric, (value, low, high) = METRICS[key].brief, differences(group, first)[key]
    interval = metric.interval(low, high, sign=True) or "without an interval"
    return f"{group.name} {_value(group)}, {metric.number(value, sign=True)} points {interval}{_caveat(low, high)}"


def _nll(group: Group, first: Group) -> str:
    metric, (value, low, high) = METRICS["nll"].brief, differences(group, first)["nll"]
    if math.isnan(low):
        return ""
    change = f"{metric.number(value, sign=True)} {metric.interval(low, high, sign=True)}"
    return (
        f"The NLL (log loss) of {group.name} is {metric.number(group.mean('nll'))}, {change} against {first.name}"
        f"{_caveat(low, high)}."
    )


def _caveat(low: float, high: float) -> str:
    return " (the difference may be chance)" if low <= 0 <= high else ""


def _cost_ratio(group: Group, first: Group) -> str:
    """Compare the MACs of two groups; empty if they are unknown."""
    macs, reference = group.mean("macs"), first.mean("macs")
    if math.isnan(macs) or math.isnan(reference):
        return ""
    ratio, text = macs / reference, METRICS["macs"].text(macs)
    if 0.95 < ratio < 1.05:
        return f"Both cost {text} MACs per image, within 5 %."
    return f"{group.name} costs {ratio:.2g} times the MACs of {first.name} ({text} per image)."
