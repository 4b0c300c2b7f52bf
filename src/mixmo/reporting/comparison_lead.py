"""The summary sentence of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mixmo.evaluation.comparison import Group
from mixmo.evaluation.intervals import UNKNOWN, image_intervals
from mixmo.metrics.catalogue import METRICS
from mixmo.reporting.comparison_tables import differences

ACCURACY = METRICS["accuracy"].brief
MOST = 3
"""Networks that are named in addition to the first."""


def lead_sentence(groups: Sequence[Group], chosen: str = "") -> str:
    """Return how many test images a network classifies correctly, and how the others differ from it.

    That network is the one that validation data has chosen, or the first: the test set names no winner.

    Args:
        groups: What is compared.
        chosen: The name of the group that is the best on validation data, where that is known.
    """
    images = len(groups[0].entries[0].result.predictions.targets)
    first = next((group for group in groups if group.name == chosen), groups[0])
    others = [group for group in groups if group is not first]
    name = f"{first.name}, the best on validation data," if chosen == first.name else first.name
    sentence = f"{name} classifies {_accuracy(first)} of {images} test images correctly"
    if not others:
        return f"{sentence} (ECE {METRICS['ece'].brief.text(first.mean('ece'))})."
    shown = "; ".join(_against(group, first) for group in others[:MOST])
    parts = [f"{sentence}; {shown}{'; the table has the others' if len(others) > MOST else ''}."]
    if len(others) == 1:
        parts += [_nll(others[0], first), _costs(others[0], first)]
    return " ".join(part for part in parts if part)


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


def _costs(group: Group, first: Group) -> str:
    """Return the ratio of their MACs; nothing where it is not known."""
    own, others = group.mean("macs"), first.mean("macs")
    if math.isnan(own) or math.isnan(others):
        return ""
    ratio = own / others
    if 0.95 < ratio < 1.05:
        return f"Both cost {METRICS['macs'].text(own)} MACs an image, within 5 %."
    return f"{group.name} costs {ratio:.2g} times the MACs of {first.name} ({METRICS['macs'].text(own)} an image)."
