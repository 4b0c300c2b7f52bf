"""The sentence at the top of a comparison: which is best, by how much, how sure that is, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mixmo.evaluation.comparison import Group
from mixmo.evaluation.intervals import interval
from mixmo.reporting.comparison_tables import Replicas, p_text, p_value
from mixmo.reporting.glossary import METRICS

ACCURACY = METRICS["accuracy"].brief


def lead_sentence(groups: Sequence[Group], replicas: Replicas) -> str:
    """Return which network is the most accurate, by how much, how sure that is, and at what cost.

    Args:
        groups: What is compared.
        replicas: Those of :func:`mixmo.reporting.comparison_tables.group_replicas`.
    """
    images = len(groups[0].entries[0].result.predictions.targets)
    ranked = sorted(groups, key=lambda group: group.mean("accuracy"), reverse=True)
    best = ranked[0]
    value, ends = best.mean("accuracy"), interval(replicas[best.name]["accuracy"])
    shown = f"{ACCURACY.number(value)} % {ACCURACY.interval(*ends)}"
    sentence = f"{best.name} classifies {shown} of {images} test images correctly"
    if len(groups) == 1:
        return f"{sentence} (ECE {METRICS['ece'].brief.text(best.mean('ece'))})."
    other = groups[0] if best is not groups[0] else ranked[1]
    parts = [f"{sentence}, {_against(best, other, replicas)}.", _nll(best, other, replicas), _costs(best, other)]
    return " ".join(part for part in parts if part)


def _against(best: Group, other: Group, replicas: Replicas) -> str:
    gain = best.mean("accuracy") - other.mean("accuracy")
    low, high = interval(replicas[best.name]["accuracy"] - replicas[other.name]["accuracy"])
    p = p_value(best, other)
    test = "" if math.isnan(p) else f"; McNemar's p {p_text(p) if p < 1e-16 else f'= {p_text(p)}'}"
    if gain == 0:
        return f"as many as {other.name} ({ACCURACY.interval(low, high, sign=True)} points{test})"
    more = f"{ACCURACY.number(gain)} points {ACCURACY.interval(low, high, sign=True)} more than {other.name}"
    return f"{more}{test}{_doubt(low, high)}"


def _nll(best: Group, other: Group, replicas: Replicas) -> str:
    metric, gain = METRICS["nll"].brief, best.mean("nll") - other.mean("nll")
    low, high = interval(replicas[best.name]["nll"] - replicas[other.name]["nll"])
    if math.isnan(gain) or math.isnan(low):
        return ""
    change = f"{metric.number(gain, sign=True)} {metric.interval(low, high, sign=True)}"
    return f"Its NLL is {metric.number(best.mean('nll'))}, {change} against that one{_doubt(low, high)}."


def _doubt(low: float, high: float) -> str:
    return ": the difference may be chance" if low <= 0 <= high else ""


def _costs(best: Group, other: Group) -> str:
    """Return the ratio of their MACs; nothing where it is not known."""
    own, others = best.mean("macs"), other.mean("macs")
    if math.isnan(own) or math.isnan(others):
        return ""
    ratio = own / others
    if 0.95 < ratio < 1.05:
        return f"Both cost {METRICS['macs'].text(own)} MACs an image, within 5 %."
    return f"It costs {ratio:.2g} times the MACs of {other.name} ({METRICS['macs'].text(own)} an image)."
