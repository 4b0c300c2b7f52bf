"""The sections that pages of runs and of comparisons have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mixmo.config.plan import flatten
from mixmo.corruptions import SEVERITIES
from mixmo.errors import InputError
from mixmo.escaping import dataset_name
from mixmo.evaluation.predictions import Predictions
from mixmo.evaluation.results import EvaluationResult
from mixmo.metrics.catalogue import CORRUPTED, COSTS, DIAGNOSIS, DIVERSITY, METRICS, PER_NETWORK, SCALED
from mixmo.metrics.ood import ood_scores
from mixmo.metrics.samples import Samples
from mixmo.metrics.selective import cumulative_errors
from mixmo.reporting import charts
from mixmo.reporting.advice import advice
from mixmo.reporting.page import Picture, Section, chart, log_missing
from mixmo.reporting.tables import MEANINGS, class_table, ood_tables
from mixmo.reporting.text_table import TextTable
from mixmo.runs import RunFolder

POINTS = 400
"""Points of a curve at most."""
MATRIX = 15
"""Classes up to which the whole confusion matrix is drawn."""
CLASSES = 30
"""Classes up to which all are drawn; of more, half as many of the worst and of the best."""
PAIRS = 12
"""Largest number of confused pairs that are listed."""
TABLES = {
    "Each network": PER_NETWORK,
    "Members, mean over pairs": DIVERSITY,
    "Diagnosis": DIAGNOSIS,
    "After temperature scaling of the logits": SCALED,
    "Corruptions": CORRUPTED,
    "Costs": COSTS,
}
"""The tables of all metrics."""
SETTINGS = {
    "data.name": "Dataset", "model.backbone": "Backbone", "model.num_members": "Members", "mixer.kind": "Mask",
    "pixels.kind": "Pixel mixing", "data.batch_repetition": "Batch repetition", "data.batch_size": "Batch size",
    "trainer.max_epochs": "Epochs", "trainer.precision": "Precision", "seed": "Seed",
}  # fmt: skip
"""The most important settings of a run."""


def confidence_section(shown: Mapping[str, Samples], parts: Mapping[str, Samples]) -> Section:
    """Return reliability diagrams of some networks and risk–coverage curves of others: how far to trust confidence."""
    plots, start = [], 0.0 if len(shown) > 1 else None  # side by side they have the same axes
    for name, samples in shown.items():
        caption = f"Reliability diagram of {name}"
        means = f"Mean confidence {100 * samples.confidence.mean():.1f} %, accuracy {100 * samples.right.mean():.1f} %."
        plots.append(chart(charts.reliability, samples, name, start, caption=caption, alt=f"{caption}. {means}"))
    errors = "; ".join(f"{name} {100 - 100 * samples.right.mean():.1f} %" for name, samples in parts.items())
    caption = "Risk–coverage curves: how often predictions are wrong if the least confident ones are left out"
    curves = {name: risk_coverage(samples) for name, samples in parts.items()}
    title, below = "Error on the images kept, %", "coverage: images kept, the most confident first, %"
    plots.append(
        chart(charts.lines, curves, title, below, caption=caption, alt=f"{caption}. At full coverage: {errors}.")
    )
    text = (
        "Can the confidence be trusted? On the dashed line of a reliability diagram confidence equals accuracy; below "
        "it is overconfident."
    )
    return Section("Confidence", text, plots=plots)


def risk_coverage(samples: Samples) -> charts.Curve:
    """Return shares of images, the most confident first, and the error among them, in %."""
    errors = cumulative_errors(samples.confidence, samples.right.bool()).numpy()
    kept = np.unique(np.linspace(1, len(errors), POINTS).round().astype(int))
    return 100 * kept / len(errors), 100 * errors[kept - 1] / kept


def class_section(
    found: Predictions, samples: Samples, by_class: Mapping[str, Mapping[str, float]] | None = None
) -> Section:
    """Return which classes are confused, the accuracy of each, and further metrics in a table that a click opens."""
    classes = len(found.classes)
    numbers = found.targets.numpy() * classes + samples.predicted.numpy()
    counts = np.bincount(numbers, minlength=classes * classes).reshape(classes, classes).astype(float)
    pairs = _pairs(counts, found.classes)
    plots, tables = [_class_plot(counts, found.classes)], []
    if classes <= MATRIX:
        worst = f" Most confused: {pairs[0][0]} taken for {pairs[0][1]} ({pairs[0][2]} images)." if pairs else ""
        text = f"Confusion matrix of {classes} classes.{worst}"
        plots.insert(0, chart(charts.confusion, counts, found.classes, caption="Confusion matrix", alt=text))
    elif pairs:
        tables.append(TextTable("Most confused pairs", ["True class", "taken for", "images", "of the class"], pairs))
    inside = [Section("Every class", tables=[class_table(by_class)], folded=True)] if by_class else []
    return Section("Classes", plots=plots, tables=tables, inside=inside)


def _pairs(counts: charts.Array, classes: Sequence[str]) -> list[list[str]]:
    """Return the most confused pairs of classes: true, predicted, images, share of the true class."""
    wrong = counts - np.diag(np.diag(counts))
    found = zip(*np.unravel_index(np.argsort(-wrong, axis=None, kind="stable")[:PAIRS], wrong.shape), strict=True)
    return [
        [classes[true], classes[taken], f"{wrong[true, taken]:.0f}", f"{wrong[true, taken] / counts[true].sum():.0%}"]
        for true, taken in found
        if wrong[true, taken]
    ]


def _class_plot(counts: charts.Array, classes: Sequence[str]) -> Picture:
    images, hits = counts.sum(1), np.diag(counts)
    order = np.argsort(hits / np.maximum(images, 1), kind="stable")
    order = order[images[order] > 0]
    caption = "Accuracy by class, with 95 % intervals, the worst first; in brackets the number of test images"
    if len(order) > CLASSES:
        order = np.concatenate([order[: CLASSES // 2], order[-CLASSES // 2 :]])
        caption = f"The {CLASSES // 2} worst and the {CLASSES // 2} best classes, with 95 % intervals (test images)"
    names = [classes[number] for number in order]
    worst, best = ((names[end], 100 * hits[order[end]] / images[order[end]]) for end in (0, -1))
    alt = f"{caption}. Worst: {worst[0]} {worst[1]:.0f} %; best: {best[0]} {best[1]:.0f} %."
    values = (hits[order], images[order], names, hits.sum() / images.sum())
    return chart(charts.class_accuracies, *values, caption=caption, alt=alt)


def curves_sections(runs: Mapping[str, RunFolder], text: str) -> list[Section]:
    """Return loss and accuracy by epoch: for one run every accuracy, for several that on validation data."""
    histories, notes = {}, []
    for name, run in runs.items():
        try:
            if rows := run.read_metrics():
                histories[name] = rows
        except InputError as error:
            notes.append(log_missing(error))
    if not histories:
        return [Section("Learning curves", notes=notes)] if notes else []
    members = {name: run.trained_config()["model"]["num_members"] for name, run in runs.items()}
    losses = {name: _curve(rows, "train_loss", 1 / members[name]) for name, rows in histories.items()}
    mean = ", mean over members" if max(members.values()) > 1 else ""
    plots = [chart(charts.lines, losses, f"Training loss{mean}", "epoch", caption="Training loss by epoch")]
    score = "map" if any("val_map" in rows[-1] for rows in histories.values()) else "accuracy"
    what, where = METRICS[score].name, ""
    if len(runs) == 1:
        ((name, rows),) = histories.items()
        columns = _accuracies(rows, score, members[name] == 1)
        curves = {column: _curve(rows, key, 100) for column, key in columns.items()}
    else:
        known = {name: rows for name, rows in histories.items() if f"val_{score}" in rows[-1]}
        curves, where = {name: _curve(rows, f"val_{score}", 100) for name, rows in known.items()}, " on validation data"
    if curves:
        plots.append(chart(charts.lines, curves, f"{what}, %", "epoch", caption=f"{what}{where} by epoch"))
    return [Section("Learning curves", text, plots=plots, notes=notes)]


def _curve(rows: Sequence[Mapping[str, float]], key: str, factor: float) -> charts.Curve:
    return [row["epoch"] for row in rows], [factor * row.get(key, math.nan) for row in rows]


def _accuracies(rows: Sequence[Mapping[str, float]], score: str, single: bool) -> dict[str, str]:
    """Return the columns of accuracies, or of mAP, by their names in words."""
    found = {}
    for key in rows[-1]:
        if key.endswith(f"_{score}") and not (single and key == f"val_member_0_{score}"):  # as that of the network
            name = key.removesuffix(f"_{score}").replace("train", "training").replace("val", "validation")
            found[(name.removesuffix("_member_0") if single else name).replace("_", " ")] = key
    return found


def corruption_section(accuracies: Mapping[str, Sequence[float]], table: TextTable) -> Section:
    """Return accuracy in % at the severities 0 (none) to 5, mean over kinds, and a table of every kind."""
    curves = {name: ([0, *SEVERITIES], values) for name, values in accuracies.items()}
    title, below = "Accuracy, %, mean over kinds of corruption", "severity (0: clean)"
    plot = chart(charts.lines, curves, title, below, caption="Accuracy by severity of corruption")
    return Section(
        "Corruptions", plots=[plot], inside=[Section("Every kind of corruption", tables=[table], folded=True)]
    )


def ood_sections(results: Mapping[str, EvaluationResult]) -> list[Section]:
    """Return how confident networks are on test and OOD images, and how well scores separate them."""
    plots, tables = [], []
    for name, result in results.items():
        if result.ood:
            datasets = {"test images": result.predictions}
            datasets |= {dataset_name(dataset): ood.predictions for dataset, ood in result.ood.items()}
            scores = {key: ood_scores(found.logits)["max_probability"] for key, found in datasets.items()}
            confidences = {key: -100 * each.numpy() for key, each in scores.items()}
            caption = f"Confidence of {name} on test and OOD images"
            plots.append(chart(charts.histograms, confidences, name, caption=caption))
            prefix = f"{name}: " if len(results) > 1 else ""
            tables += [replace(table, title=f"{prefix}{table.title}") for table in ood_tables(result.ood)]
    text = "Images of none of the classes should get low confidence."
    return [Section("Out-of-distribution images", text, plots=plots, tables=tables)] if plots else []


def member_sections(results: Mapping[str, EvaluationResult]) -> list[Section]:
    """Return the advice on the members of each network."""
    found = {name: advice(each.diagnosis, each.predictions.logits.shape[1]) for name, each in results.items()}
    notes = [f"{name}: {text}" if len(results) > 1 else text for name, text in found.items() if text]
    return [Section("Members", notes=notes)] if notes else []


def metrics_section(columns: Mapping[str, Mapping[str, float]]) -> Section:
    """Return every known metric with its meaning, in tables that a click opens; columns are networks."""
    tables = []
    for title, keys in TABLES.items():
        known = {name: values for name, values in columns.items() if values.keys() & set(keys)}
        rows = [
            [METRICS[key].heading, *(METRICS[key].text(values.get(key, math.nan)) for values in known.values())]
            for key in keys
            if any(key in values for values in known.values())
        ]
        if rows:
            tables.append(TextTable("", [title, *(known if len(known) > 1 else [""])], rows, meanings=MEANINGS))
    return Section("All metrics, and what they mean", tables=tables, folded=True)


def reproduce_section(runs: Sequence[RunFolder], notes: Sequence[str] = (), more: Sequence[str] = ()) -> Section:
    """Return how runs were trained: commands, settings (of a single one all), and the first one's environment."""
    made, notes = list[dict[str, Any]](), list(notes)
    for run in runs:
        if isinstance((about := run.about()).get("command"), str):
            made.append(about)
        else:
            notes.append(log_missing(InputError(f"{run.path / 'environment.json'} is missing, or damaged.")))
    listings = {"Commands": "\n".join([*(each["command"] for each in made), *more])}
    if len(runs) == 1:
        listings["Configuration"] = runs[0].config_file.read_text("utf-8").strip()
    if made:
        listings["Environment"] = json.dumps(made[0], indent=2, ensure_ascii=False)
    tables = []
    if len(runs) > 1:
        configs = {str(run.path): dict(flatten(run.trained_config())) for run in runs}
        rows = [[path, *(str(config[key]) for key in SETTINGS)] for path, config in configs.items()]
        tables.append(TextTable("Settings", ["Run", *SETTINGS.values()], rows))
    listings = {heading: text for heading, text in listings.items() if text}
    return Section("Reproduce", notes=notes, tables=tables, listings=listings, folded=True)
