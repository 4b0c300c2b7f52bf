"""The tables of a comparison: metrics, paired differences, costs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from mixmo.escaping import csv_cell, dataset_name
from mixmo.evaluation.comparison import Group, intervals_between
from mixmo.evaluation.intervals import LEAST, UNKNOWN, image_intervals, mcnemar
from mixmo.metrics.catalogue import COSTS, METRICS
from mixmo.metrics.description import Description
from mixmo.reporting.tables import LABELS_MAIN, MAIN, MEANINGS
from mixmo.reporting.text_table import TextTable

TABLE_METRICS = (*MAIN, *LABELS_MAIN, "balanced_accuracy", "d_re", "corruption/accuracy")
"""Columns of the first table, where available."""
PAGES_ONLY = {"Misclassification AUROC", "Error-ratio diversity", "ECE, points"}
"""Headings of columns that are in pages and files but not in the terminal."""


class Difference(NamedTuple):
    """A difference and the ends of its 95 % interval; NaN if there is none."""

    value: float
    low: float
    high: float


SpreadText = Callable[[Group, str], str]
"""Returns the text after a group's metric, such as its interval."""


def metrics_table(groups: Sequence[Group]) -> TextTable:
    """Return the metrics of every group; bold if better than all others by more than chance.

    They have 95 % intervals over test images, or with several seeds their standard deviation.
    """
    images = groups[0].images
    seeds = any(len(group.entries) > 1 for group in groups)
    spread = f", mean ± standard deviation over n {groups[0].unit}" if seeds else ", 95 % intervals over test images"
    spread = "" if not seeds and groups[0].multi_label else spread
    columns = {key: METRICS[key] for key in TABLE_METRICS} | _ood_columns(groups)
    if all(math.isclose(each.mean("balanced_accuracy"), each.mean("accuracy")) for each in groups):
        del columns["balanced_accuracy"]
    corrupted = [entry.result.corruptions for group in groups for entry in group.entries]
    ranges = {} if seeds else {each.name: image_intervals(each.entries[0].result.predictions) for each in groups}
    notes = [f"Corruptions: {each.source}." for each in corrupted if each is not None][:1]
    if any("accuracy" in found and "nll" not in found for found in ranges.values()):
        notes.append(f"Networks with fewer than {LEAST} mistakes have no intervals of NLL and Brier score.")

    def spread_text(group: Group, key: str) -> str:
        metric = columns[key]
        if seeds:
            deviation = group.deviation(key)
            return "" if math.isnan(deviation) else f"± {metric.number(deviation)}"
        return metric.interval(*ranges[group.name].get(key, UNKNOWN))

    best = {key: name for key in compared_metrics(groups[0]) if (name := _best_beyond_chance(groups, key))}
    return replace(
        groups_table(groups, columns, f"{images} test images{spread}", spread_text, best), note=" ".join(notes)
    )


def costs_table(groups: Sequence[Group]) -> TextTable:
    """Return every group's costs of training and inference, averaged over seeds."""
    return groups_table(groups, {key: METRICS[key] for key in COSTS}, "Costs")


def groups_table(
    groups: Sequence[Group],
    columns: Mapping[str, Description],
    title: str,
    spread: SpreadText = lambda group, key: "",
    best: Mapping[str, str] | None = None,
) -> TextTable:
    """Return mean metrics or costs, a row for each group; columns without any value are left out."""
    keys = [key for key in columns if any(not math.isnan(group.mean(key)) for group in groups)]
    rows, highlighted, details = [], set(), {}
    for row, group in enumerate(groups):
        cells = [f"{group.name} (n = {len(group.entries)})" if len(group.entries) > 1 else group.name]
        for key in keys:
            mean = group.mean(key)
            if (best or {}).get(key) == group.name:
                highlighted.add((row, len(cells)))
            if text := "" if math.isnan(mean) else spread(group, key):
                details[row, len(cells)] = text
            cells.append("" if math.isnan(mean) else columns[key].number(mean))
        rows.append(cells)
    header = ["", *(columns[key].column for key in keys)]
    return TextTable(title, header, rows, best=highlighted, details=details, meanings=MEANINGS)


def compared_metrics(group: Group) -> Sequence[str]:
    """Return the metrics whose differences are reported."""
    return LABELS_MAIN if group.multi_label else MAIN


def differences(group: Group, first: Group) -> dict[str, Difference]:
    """Return a group's differences to ``first``, with 95 % intervals (:func:`intervals_between`)."""
    keys = compared_metrics(first)
    ranges = intervals_between(group, first, keys)
    return {key: Difference(group.mean(key) - first.mean(key), *ranges.get(key, UNKNOWN)) for key in keys}


def differences_table(groups: Sequence[Group]) -> TextTable:
    """Return the differences of the other groups to the first, with 95 % intervals."""
    first, rows = groups[0], list[list[str]]()
    details: dict[tuple[int, int], str] = {}
    for group in groups[1:]:
        cells = [f"{group.name} − {first.name}"]
        for key, (value, low, high) in differences(group, first).items():
            metric = METRICS[key]
            if interval := metric.interval(low, high, sign=True):
                details[len(rows), len(cells)] = interval
            cells.append(metric.number(value, sign=True))
        rows.append([*cells, _p_value(group, first)])
    kinds = describe_intervals(groups)
    title = f"Differences with 95 % intervals ({kinds})" if kinds else "Differences"
    units = {"%": ", points", "": ""}
    header = ["", *(f"{METRICS[key].name}{units[METRICS[key].unit]}" for key in compared_metrics(first)), "McNemar's p"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return TextTable(title, header, rows, details=details, meanings=MEANINGS)


def _p_value(group: Group, first: Group) -> str:
    """Return McNemar's exact p-value for two single-label groups of one network each; else nothing."""
    if len(group.entries) > 1 or len(first.entries) > 1 or first.multi_label:
        return ""
    p = mcnemar(*(each.entries[0].result.predictions.average() for each in (group, first)))
    return f"{p:.2g}" if p >= 1e-16 else "< 1e-16"


def _ood_columns(groups: Sequence[Group]) -> dict[str, Description]:
    datasets = dict.fromkeys(name for group in groups for name in group.entries[0].result.ood)
    return {
        f"ood/{name}/max_probability/auroc": replace(METRICS["auroc"], name=f"AUROC {dataset_name(name)}")
        for name in datasets
    }


def describe_intervals(groups: Sequence[Group]) -> str:
    """Describe the intervals of the differences to the first group."""
    kinds = {
        (1, 1): "" if groups[0].multi_label else "over test images",
        (1, 2): "none for one run against several seeds",
        (2, 2): "Student's over {0}, paired if the {0} are the same, else Welch's".format(groups[0].unit),
    }
    present = [tuple(sorted(min(len(each.entries), 2) for each in (group, groups[0]))) for group in groups[1:]]
    return "; ".join(text for kind, text in kinds.items() if text and kind in present)


def _best_beyond_chance(groups: Sequence[Group], key: str) -> str:
    """Return the group that is better than every other by an interval that excludes 0; else an empty string."""
    known = [group for group in groups if not math.isnan(group.mean(key))]
    if len(known) < 2:
        return ""
    best = (max if METRICS[key].higher_is_better else min)(known, key=lambda group: group.mean(key))
    for other in known:
        low, high = intervals_between(best, other, [key]).get(key, UNKNOWN)
        if other is not best and not low * high > 0:
            return ""
    return best.name


def table_rows(groups: Sequence[Group]) -> list[dict[str, str | float]]:
    """Return every metric and cost of every entry, NaN if unavailable, and the source of its corruptions."""
    entries = [(group.name, entry, entry.flat()) for group in groups for entry in group.entries]
    keys = list(dict.fromkeys(key for _, _, values in entries for key in values))
    return [
        {"group": name, "run": entry.name, **{key: values.get(key, math.nan) for key in keys},
         "corruptions": "" if entry.result.corruptions is None else entry.result.corruptions.source}
        for name, entry, values in entries
    ]  # fmt: skip


def as_csv(groups: Sequence[Group]) -> str:
    """Return :func:`table_rows` as CSV, with empty cells for NaN."""
    rows, buffer = table_rows(groups), io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(csv_cell, rows[0]))
    for row in rows:
        cells = ("" if cell != cell else cell for cell in row.values())
        writer.writerow([csv_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    return buffer.getvalue()
