"""The summary sentence and headline metrics of a run's page."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mixmo.config.recipes import method_name
from mixmo.errors import reason
from mixmo.evaluation.costs import network_size
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.intervals import UNKNOWN, Interval
from mixmo.evaluation.results import EvaluationResult
from mixmo.metrics.catalogue import METRICS
from mixmo.names import printable

MAIN = ("accuracy", "nll", "brier", "ece", "misclassification_auroc")
"""The metrics of the cards at the top of a page."""

MAIN_DIVERSITY = ("d_re", "disagreement")
"""Those of several members."""

logger = logging.getLogger("mixmo")

FAMILIES = {"wide_resnet": "WideResNet-", "preact_resnet": "PreActResNet-", "resnet": "ResNet-"}


def backbone_name(name: str) -> str:
    """Return a backbone's name as papers write it, where it is one of theirs.

    Example:
        >>> backbone_name("wide_resnet10_1"), backbone_name("resnet50"), backbone_name("efficientnet_b0")
        ('WideResNet-10-1', 'ResNet-50', 'efficientnet_b0')
    """
    found = re.fullmatch(r"(wide_resnet|preact_resnet|resnet)(\d+)(?:_(\d+))?", name)
    if found is None:
        return name
    family, depth, width = found.groups()
    return f"{FAMILIES[family]}{depth}{f'-{width}' if width else ''}"


def lead_sentence(trained: TrainedRun, found: EvaluationResult, ranges: Mapping[str, Interval]) -> str:
    """Return what was trained, how good it is, how sure that is, at what cost and against what.

    Args:
        trained: The run.
        found: Its evaluation.
        ranges: Those of :func:`mixmo.evaluation.intervals.image_intervals`.
    """
    run = trained.folder
    config, metrics = run.trained_config(), found.metrics.average
    accuracy = METRICS["accuracy"].brief
    interval_text = accuracy.interval(*ranges["accuracy"])
    backbone = backbone_name(str(config["model"]["backbone"]))
    count = run.training_images()
    learned = "" if count is None else f", trained on {count} images,"
    members, method = config["model"]["num_members"], method_name(config)
    what = f"A {method}" if members == 1 else f"{method} with {members} members"
    sentences = [
        f"{what} on {backbone}{learned} classifies {accuracy.number(metrics['accuracy'])} % "
        f"{interval_text} of {len(found.predictions.targets)} test images correctly; "
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
    """Return what the accuracy is to be compared with: that of the members alone, or of the most frequent class."""
    members = [100 * member["accuracy"] for member in found.metrics.members]
    if len(members) > 1:
        low, high = f"{min(members):.1f}", f"{max(members):.1f}"
        return f"Alone, its members reach {low if low == high else f'{low} to {high}'} %."
    share = 100 * np.bincount(found.predictions.targets.numpy()).max() / len(found.predictions.targets)
    return f"The most frequent class alone would reach {share:.1f} %."


def cards(metrics: Mapping[str, float], ranges: Mapping[str, Interval]) -> Sequence[dict[str, str]]:
    """Return the metrics that matter, each with its meaning, and its interval where it has one.

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
        for key in (*MAIN, *MAIN_DIVERSITY)
        if key in metrics
    ]
