"""``comparison.html``: the page of ``mixmo compare``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mixmo.evaluation.comparison import Entry, Group
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import Predictions
from mixmo.evaluation.results import EvaluationResult
from mixmo.launching import command
from mixmo.metrics.catalogue import METRICS
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.samples import Samples
from mixmo.reporting import charts
from mixmo.reporting.comparison_tables import compared_metrics, differences, interval_kinds
from mixmo.reporting.headline import comparison_sentence
from mixmo.reporting.page import Section, chart, render
from mixmo.reporting.pictures import images_section
from mixmo.reporting.sections import (
    confidence_section,
    corruption_section,
    curves_sections,
    member_sections,
    metrics_section,
    ood_sections,
    reproduce_section,
)
from mixmo.reporting.tables import accuracies
from mixmo.reporting.text_table import TextTable
from mixmo.runs import RunFolder

STARS = "★: better than in every other row by a 95 % interval without 0; on the test set, which chooses nothing."
CURVES = (
    "Losses of networks with several members are those of mixtures; with a batch repetition of b, an epoch shows each "
    "image b times."
)


def comparison_page(
    groups: Sequence[Group], tables: Sequence[TextTable], note: str = "", chosen: str = "", download: bool = False
) -> str:
    """Return the page of a comparison; plots and images are of each group's first entry.

    ``chosen`` is the name of the group that is best on validation data, where that is known.
    """
    firsts = {group.name: group.entries[0] for group in groups}
    results = {name: entry.result for name, entry in firsts.items()}
    several = groups[0].multi_label
    parts = {} if several else {name: result.predictions.average() for name, result in results.items()}
    notes = {
        note: bool(note),
        STARS: any(table.best for table in tables),
        f"Plots, images and advice are of the first {'fold' if len(groups[0].folds) > 1 else 'seed'}.": any(
            len(group.entries) > 1 for group in groups
        ),
        **{f"{name}: {result.unscaled}": bool(result.unscaled) for name, result in results.items()},
    }
    runs = {str(run.path): run for group in groups for entry in group.entries for run in entry.runs}
    sections = [
        Section(tables=tables, notes=[text for text, holds in notes.items() if holds]),
        *_differences(groups),
        *([] if several else [confidence_section(parts, parts), *_images(firsts, parts, download)]),
        *curves_sections({_run_name(run, groups): run for run in runs.values()}, CURVES),
        *_corruptions(results),
        *ood_sections(results),
        *member_sections(results),
        metrics_section(
            {each.name: {key: each.mean(key) for key in each.entries[0].flat() if key in METRICS} for each in groups}
        ),
        reproduce_section(list(runs.values()), more=[command()]),
    ]
    title = f"Comparison of {' and '.join(firsts) if len(firsts) < 3 else f'{len(firsts)} networks'}"
    return render(title, comparison_sentence(groups, chosen), sections)


def _differences(groups: Sequence[Group]) -> list[Section]:
    if len(groups) < 2:
        return []
    found = {group.name: differences(group, groups[0]) for group in groups[1:]}
    plots = []
    for key in compared_metrics(groups[0]):
        metric = METRICS[key]
        values = {
            name: [metric.factor * value for value in each[key]]
            for name, each in found.items()
            if not math.isnan(each[key].low)
        }
        if values:
            heading = metric.heading if not metric.unit else f"{metric.heading} (points)"
            shown = "; ".join(f"{name} {metric.number(found[name][key].value, sign=True)}" for name in values)
            caption = f"{metric.name}, difference to {groups[0].name}"
            drawn = values, heading, metric.higher_is_better
            plots.append(chart(charts.differences, *drawn, caption=caption, alt=f"{caption}: {shown}."))
    text = (
        f"Blue is better than {groups[0].name}, orange is worse; a hollow point has 0 in its 95 % interval: the "
        f"difference may be chance. Intervals: {interval_kinds(groups)}."
    )
    return [Section(f"Differences to {groups[0].name}", text, plots=plots)]


def _images(firsts: Mapping[str, Entry], parts: Mapping[str, Samples], download: bool) -> list[Section]:
    """Return each network's most confident mistakes, and the images on which the networks disagree most."""
    known = next((entry for entry in firsts.values() if entry.runs), None)
    if known is None:
        return []
    data = TrainedRun(known.runs[0], download=download, data=known.data).data
    shown = known.result.predictions  # files may lack names of classes
    logits = [mean_logits(entry.result.predictions.logits).double() for entry in firsts.values()]
    together = Predictions(torch.stack(logits, 1), shown.targets, shown.classes)
    mistakes = {f"Most confident mistakes of {name}": samples for name, samples in parts.items()}
    return [images_section(data, mistakes, together, parts, "Images on which they disagree most")]


def _run_name(run: RunFolder, groups: Sequence[Group]) -> str:
    """Return a run's name: that of its group if it is the only run there, else that of its folder."""
    for group in groups:
        if [str(each.path) for entry in group.entries for each in entry.runs] == [str(run.path)]:
            return group.name
    return str(run.path)


def _corruptions(results: Mapping[str, EvaluationResult]) -> list[Section]:
    known: dict[str, Any] = {name: each.corruptions for name, each in results.items() if each.corruptions is not None}
    if not known:
        return []
    first, rows, stressed = next(iter(known.values())), [], set()
    for row, kind in enumerate(first.kinds):
        means = [100 * each.means(kind)["accuracy"] for each in known.values()]
        stressed |= {(row, place) for place, mean in enumerate(means, 1) if mean == max(means)}
        rows.append([kind.replace("_", " "), *(f"{mean:.2f}" for mean in means)])
    title = f"Accuracy, %, mean over severities; corruptions {first.source}"
    table = TextTable(title, ["", *known], rows, best=stressed)
    return [corruption_section({name: accuracies(results[name]) for name in known}, table)]
