"""``comparison.html``, the page of ``mixmo compare``."""

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
from mixmo.reporting.comparison_tables import compared_metrics, describe_intervals, differences
from mixmo.reporting.headline import summarise_comparison
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

STARS = "★: better than every other row on the test set by a 95 % interval that excludes 0; not for model selection."
CURVES = (
    "Losses of networks with several members are measured on mixtures; with batch repetition b, an epoch shows each "
    "image b times."
)


def comparison_page(
    groups: Sequence[Group], tables: Sequence[TextTable], note: str = "", chosen: str = "", download: bool = False
) -> str:
    """Return the HTML page of a comparison; plots and images are of each group's first entry.

    ``chosen`` is the name of the group that is best on validation data, if known.
    """
    firsts = {group.name: group.entries[0] for group in groups}
    results = {name: entry.result for name, entry in firsts.items()}
    multi_label = groups[0].multi_label
    averages = {} if multi_label else {name: result.predictions.average() for name, result in results.items()}
    first = f"Plots, images and advice are of the first {'fold' if len(groups[0].folds) > 1 else 'seed'}."
    notes = {
        note: bool(note),
        STARS: any(table.best for table in tables),
        first: any(len(group.entries) > 1 for group in groups),
        **{f"{name}: {result.unscaled}": bool(result.unscaled) for name, result in results.items()},
    }
    means = {each.name: {key: each.mean(key) for key in each.entries[0].flat() if key in METRICS} for each in groups}
    runs = {str(run.path): run for group in groups for entry in group.entries for run in entry.runs}
    sections = [
        Section(tables=tables, notes=[text for text, applies in notes.items() if applies]),
        *_difference_sections(groups),
        *([] if multi_label else [confidence_section(averages, averages)]),
        *([] if multi_label else _image_sections(firsts, averages, download)),
        *curves_sections({_run_name(run, groups): run for run in runs.values()}, CURVES),
        *_corruption_sections(results),
        *ood_sections(results),
        *member_sections(results),
        metrics_section(means),
        reproduce_section(list(runs.values()), commands=[command()]),
    ]
    title = f"Comparison of {' and '.join(firsts) if len(firsts) < 3 else f'{len(firsts)} networks'}"
    return render(title, summarise_comparison(groups, chosen), sections)


def _difference_sections(groups: Sequence[Group]) -> list[Section]:
    if len(groups) < 2:
        return []
    by_group = {group.name: differences(group, groups[0]) for group in groups[1:]}
    plots = []
    for key in compared_metrics(groups[0]):
        metric = METRICS[key]
        values = {
            name: [metric.factor * value for value in each[key]]
            for name, each in by_group.items()
            if not math.isnan(each[key].low)
        }
        if values:
            heading = metric.heading if not metric.unit else f"{metric.heading} (points)"
            texts = "; ".join(f"{name} {metric.number(by_group[name][key].value, sign=True)}" for name in values)
            caption = f"{metric.name}, difference to {groups[0].name}"
            arguments = values, heading, metric.higher_is_better
            plots.append(chart(charts.differences, *arguments, caption=caption, alt=f"{caption}: {texts}."))
    text = (
        f"Blue is better than {groups[0].name}, orange is worse; a point is hollow if its 95 % interval contains 0: "
        f"the difference may be chance. Intervals: {describe_intervals(groups)}."
    )
    return [Section(f"Differences to {groups[0].name}", text, plots=plots)]


def _image_sections(firsts: Mapping[str, Entry], averages: Mapping[str, Samples], download: bool) -> list[Section]:
    """Show each network's most confident mistakes, and the images on which the networks disagree most."""
    entry = next((entry for entry in firsts.values() if entry.runs), None)
    if entry is None:
        return []
    data = TrainedRun(entry.runs[0], download=download, data=entry.data).data
    known = entry.result.predictions  # files of predictions may lack class names
    logits = [mean_logits(entry.result.predictions.logits).double() for entry in firsts.values()]
    joint = Predictions(torch.stack(logits, 1), known.targets, known.classes)
    mistakes = {f"Most confident mistakes of {name}": samples for name, samples in averages.items()}
    return [images_section(data, mistakes, joint, averages, "Images on which networks disagree most")]


def _run_name(run: RunFolder, groups: Sequence[Group]) -> str:
    """Return the name of a run's group if it has no other run, else the path of its folder."""
    for group in groups:
        if [str(member.path) for entry in group.entries for member in entry.runs] == [str(run.path)]:
            return group.name
    return str(run.path)


def _corruption_sections(results: Mapping[str, EvaluationResult]) -> list[Section]:
    corrupted: dict[str, Any] = {name: each.corruptions for name, each in results.items() if each.corruptions}
    if not corrupted:
        return []
    first = next(iter(corrupted.values()))
    rows = [
        [kind.replace("_", " "), *(f"{100 * each.means(kind)['accuracy']:.2f}" for each in corrupted.values())]
        for kind in first.kinds
    ]
    title = f"Accuracy, %, mean over severities; corruptions {first.source}"
    table = TextTable(title, ["", *corrupted], rows)  # without intervals, none is marked as the best
    return [corruption_section({name: accuracies(results[name]) for name in corrupted}, table)]
