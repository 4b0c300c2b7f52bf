"""The tables of a comparison: metrics, paired differences, costs, and all of it as comma-separated values."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mixmo.evaluation.comparison import Group, sample_scores
from mixmo.evaluation.intervals import Array, interval, mean_replicates, replicates
from mixmo.evaluation.statistics import mcnemar
from mixmo.names import csv_cell, dataset_name
from mixmo.reporting.class_charts import Difference
from mixmo.reporting.glossary import COSTS, MAIN, METRICS, Metric
from mixmo.reporting.tables import TextTable

SHOWN = (*MAIN, "d_re", "corruption/accuracy")
"""The columns of the first table, where known."""
COMPARED = MAIN
"""The metrics whose differences have intervals."""

Spread = Callable[[Group, str], str]
"""Returns what stands behind a metric of a group."""
Replicas = dict[str, dict[str, Array]]
"""By group and metric: (R,) values on resampled test images, means over seeds."""


def group_replicas(groups: Sequence[Group]) -> Replicas:
    """Return the bootstrap replicates of each group; those of two groups are paired."""
    return {
        group.name: mean_replicates([replicates(entry.result.predictions) for entry in group.entries])
        for group in groups
    }


def metrics_table(groups: Sequence[Group], replicas: Replicas) -> TextTable:
    """Return the metrics of every group with intervals, the best in bold.

    With one network of each method it shows 95 % intervals over test images, with seeds the standard deviation.

    Args:
        groups: What is compared.
        replicas: Of :func:`group_replicas`.
    """
    images = len(groups[0].entries[0].result.predictions.targets)
    seeds = any(len(group.entries) > 1 for group in groups)
    spread = "mean ± standard deviation over n seeds" if seeds else "95 % intervals over test images"
    columns = {key: METRICS[key] for key in SHOWN} | _ood_columns(groups)
    corrupted = [entry.result.corruptions for group in groups for entry in group.entries]
    note = next((f"corruptions: {found.source}" for found in corrupted if found is not None), "")

    def spread_text(group: Group, key: str) -> str:
        metric = columns[key]
        if seeds:
            deviation = group.deviation(key)
            return "" if math.isnan(deviation) else f"± {metric.number(deviation)}"
        values = replicas[group.name].get(key)
        return "" if values is None else metric.interval(*interval(values))

    return replace(groups_table(groups, columns, f"{images} test images, {spread}", spread_text), note=note)


def costs_table(groups: Sequence[Group]) -> TextTable:
    """Return what every group cost and costs, means over seeds, the least in bold."""
    return groups_table(groups, {key: METRICS[key] for key in COSTS}, "Costs")


def groups_table(
    groups: Sequence[Group],
    columns: Mapping[str, Metric],
    title: str,
    spread: Spread = lambda group, key: "",
) -> TextTable:
    """Return means of metrics and costs, a row for each group, the best of each in bold.

    Args:
        groups: What is compared.
        columns: By their keys of :meth:`mixmo.evaluation.comparison.Entry.flat`; those no group has are left out.
        title: Above the table.
        spread: Returns what stands behind a metric of a group.
    """
    keys = [key for key in columns if any(not math.isnan(group.mean(key)) for group in groups)]
    best = {key: _best(columns[key], [group.mean(key) for group in groups]) for key in keys}
    rows, stressed, details = [], set(), {}
    for row, group in enumerate(groups):
        cells = [f"{group.name} (n = {len(group.entries)})" if len(group.entries) > 1 else group.name]
        for key in keys:
            mean = group.mean(key)
            shown = "" if math.isnan(mean) else columns[key].number(mean)
            top = best[key]
            if len(groups) > 1 and shown and top is not None and shown == columns[key].number(top):  # as it is read
                stressed.add((row, len(cells)))
            if behind := "" if math.isnan(mean) else spread(group, key):
                details[row, len(cells)] = behind
            cells.append(shown)
        rows.append(cells)
    return TextTable(title, ["", *(columns[key].column for key in keys)], rows, best=stressed, details=details)


def differences(group: Group, first: Group, replicas: Replicas) -> dict[str, Difference]:
    """Return the differences of a group to the first one, with 95 % intervals, resampled on the same images.

    Args:
        group: Any but the first.
        first: The first group.
        replicas: Of :func:`group_replicas`.
    """
    found = {}
    for key in COMPARED:
        resampled = replicas[group.name][key] - replicas[first.name][key]
        found[key] = Difference(group.mean(key) - first.mean(key), *interval(resampled))
    return found


def p_value(group: Group, first: Group) -> float:
    """Return McNemar's exact p-value for two groups of one network each; NaN for seeds."""
    if len(group.entries) > 1 or len(first.entries) > 1:
        return math.nan
    return mcnemar(sample_scores(group)["accuracy"], sample_scores(first)["accuracy"])


def p_text(p: float) -> str:
    """Return a p-value as text.

    Example:
        >>> p_text(0.0123), p_text(1e-20), p_text(math.nan)
        ('0.012', '< 1e-16', '')
    """
    return "" if math.isnan(p) else f"{p:.2g}" if p >= 1e-16 else "< 1e-16"


def differences_table(groups: Sequence[Group], replicas: Replicas) -> TextTable:
    """Return the differences of every group to the first, with 95 % intervals.

    Args:
        groups: Two or more.
        replicas: Of :func:`group_replicas`.
    """
    first, rows = groups[0], list[list[str]]()
    details: dict[tuple[int, int], str] = {}
    for group in groups[1:]:
        cells = [f"{group.name} − {first.name}"]
        for key, (value, low, high) in differences(group, first, replicas).items():
            metric = METRICS[key]
            details[len(rows), len(cells)] = metric.interval(low, high, sign=True)
            cells.append(metric.number(value, sign=True))
        rows.append([*cells, p_text(p_value(group, first))])
    title = "Differences with 95 % intervals (paired bootstrap over test images; seeds are averaged first)"
    units = {"%": ", points", "": ""}
    header = ["", *(f"{METRICS[key].name}{units[METRICS[key].unit]}" for key in COMPARED), "McNemar's p"]
    return TextTable(title, header, rows, details=details)


def _ood_columns(groups: Sequence[Group]) -> dict[str, Metric]:
    datasets = dict.fromkeys(name for group in groups for name in group.entries[0].result.ood)
    return {
        f"ood/{name}/max_probability/auroc": replace(METRICS["auroc"], name=f"AUROC {dataset_name(name)}")
        for name in datasets
    }


def _best(metric: Metric, means: Sequence[float]) -> float | None:
    known = [mean for mean in means if not math.isnan(mean)]
    if metric.better is None or not known:
        return None
    return max(known) if metric.better else min(known)


def as_csv(groups: Sequence[Group]) -> str:
    """Return every metric of every entry, and where its corruptions come from, as comma-separated values."""
    keys = list(dict.fromkeys(key for group in groups for entry in group.entries for key in entry.flat()))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["group", "run", *map(csv_cell, keys), "corruptions"])
    for group in groups:
        for entry in group.entries:
            corrupted = entry.result.corruptions
            source = "" if corrupted is None else corrupted.source
            known = entry.flat()
            metrics = [known.get(key, "") for key in keys]
            writer.writerow([csv_cell(group.name), csv_cell(entry.name), *metrics, csv_cell(source)])
    return buffer.getvalue()
