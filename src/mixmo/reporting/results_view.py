"""What pages read of an evaluation, typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mixmo.evaluation.comparison import Group
from mixmo.evaluation.predictions import Predictions
from mixmo.evaluation.results import Judgement
from mixmo.evaluation.robustness import Corrupted

TODAY = {"misclassification_auroc": "auroc_correct", "macs": "multiply_adds", "latency_ms": "milliseconds"}
Values = Mapping[str, float]


class Metrics(NamedTuple):
    """Metrics of both averages, of each member, and of the members together."""

    average: Values
    probability_average: Values
    members: Sequence[Values]
    diversity: Values


class OOD(NamedTuple):
    """Predictions on another dataset, and metrics by score."""

    predictions: Predictions
    metrics: Mapping[str, Values]


@dataclass(frozen=True)
class Result:
    """An evaluation."""

    predictions: Predictions
    metrics: Metrics
    scaled: Values
    ood: Mapping[str, OOD]
    corruptions: Corrupted | None


def result_of(found: Judgement) -> Result:
    """Return a judgement with typed fields."""
    names = {old: new for new, old in TODAY.items()}
    figures = {"/".join(names.get(part, part) for part in key.split("/")): v for key, v in found.figures.items()}

    def under(prefix: str) -> dict[str, float]:
        return {key.removeprefix(prefix): value for key, value in figures.items() if key.startswith(prefix)}

    members = [under(f"member_{index}/") for index in range(found.tested.logits.shape[1])]
    average = {key: value for key, value in figures.items() if "/" not in key}
    ood = {}
    for name, predictions in found.strangers.items():
        scores: dict[str, dict[str, float]] = {}
        for key, value in under(f"ood/{name}/").items():
            score, _, metric = key.partition("/")
            scores.setdefault(score, {})[metric] = value
        ood[name] = OOD(predictions, scores)
    return Result(
        found.tested,
        Metrics(average, under("probability_average/"), members, average if len(members) > 1 else {}),
        {key: average[key] for key in average if key.endswith(("_scaled", "_two_fold")) or key == "temperature"},
        ood,
        found.corrupted,
    )


def group_mean(group: Group, key: str) -> float:
    """Return a metric's mean over a group's entries, NaN where it is not known."""
    return group.mean(TODAY.get(key, key))


def group_deviation(group: Group, key: str) -> float:
    """Return a metric's standard deviation over a group's entries, NaN for a single one."""
    return group.deviation(TODAY.get(key, key))
