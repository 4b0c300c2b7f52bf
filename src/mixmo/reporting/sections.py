"""Sections shared by the pages of runs and of comparisons."""

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
"""Largest number of points in a curve."""
MATRIX = 15
"""Largest number of classes for which the confusion matrix is drawn."""
CLASSES = 30
"""Largest number of classes that are plotted: if there are more, half are the worst and half the best."""
PAIRS = 12
"""Largest number of confused pairs of classes that are listed."""
TABLES = {
    "Each network": PER_NETWORK,
    "Members, mean over pairs": DIVERSITY,
    "Diagnosis": DIAGNOSIS,
    "After temperature scaling of the logits": SCALED,
    "Corruptions": CORRUPTED,
    "Costs": COSTS,
}
"""Tables of all metrics, by title."""
SETTINGS = {
    "data.name": "Dataset", "model.backbone": "Backbone", "model.num_members": "Members", "mixer.kind": "Mask",
    "pixels.kind": "Pixel mixing", "data.batch_repetition": "Batch repetition", "data.batch_size": "Batch size",
    "trainer.max_epochs": "Epochs", "trainer.precision": "Precision", "seed": "Seed",
}  # fmt: skip
"""The most important settings of a run, with their headings."""


def confidence_section(diagrams: Mapping[str, Samples], curves: Mapping[str, Samples]) -> Section:
    """Show reliability diagrams of ``diagrams`` and risk–coverage curves of ``curves``, both by network."""
    plots, start = [], 0.0 if len(diagrams) > 1 else None  # several diagrams share their axes' range
    for name, samples in diagrams.items():
        caption = f"Reliability diagram of {name}"
        means = f"Mean confidence {100 * samples.confidence.mean():.1f} %, accuracy {100 * samples.right.mean():.1f} %."
        plots.append(chart(charts.reliability, samples, name, start, caption=caption, alt=f"{caption}. {means}"))
    errors = "; ".join(f"{name} {100 - 100 * samples.right.mean():.1f} %" for name, samples in curves.items())
    caption = "Risk–coverage curves: error rate on the most confident predictions"
    values = {name: risk_coverage(samples) for name, samples in curves.items()}
    title, x_label = "Error rate, %", "coverage: share of images, the most confident first, %"
    alt = f"{caption}. At full coverage: {errors}."
    plots.append(chart(charts.lines, values, title, x_label, caption=caption, alt=alt))
    text = (
        "Can the confidence be trusted? On the dashed line of a reliability diagram, confidence equals accuracy; below "
        "it, the network is overconfident."
    )
    return Section("Confidence", text, plots=plots)


def risk_coverage(samples: Samples) -> charts.Curve:
    """Return shares of images, the most confident first, and the error rates among them, in %."""
    errors = cumulative_errors(samples.confidence, samples.right.bool()).numpy()
    counts = np.unique(np.linspace(1, len(errors), POINTS).round().astype(int))
    return 100 * counts / len(errors), 100 * errors[counts - 1] / counts


def class_section(
    predictions: Predictions, samples: Samples, by_class: Mapping[str, Mapping[str, float]] | None = None
) -> Section:
    """Show confused classes, the accuracy of each class, and a folded table of its metrics."""
    names, classes = predictions.classes, len(predictions.classes)
    numbers = predictions.targets.numpy() * classes + samples.predicted.numpy()
    counts = np.bincount(numbers, minlength=classes * classes).reshape(classes, classes).astype(float)
    pairs = _confused_pairs(counts, names)
    plots, tables = [_class_plot(counts, names)], []
    if classes <= MATRIX:
        worst = f" Most confused: {pairs[0][0]} predicted as {pairs[0][1]} ({pairs[0][2]} images)." if pairs else ""
        alt = f"Confusion matrix of {classes} classes.{worst}"
        plots.insert(0, chart(charts.confusion, counts, names, caption="Confusion matrix", alt=alt))
    elif pairs:
        tables.append(TextTable("Most confused pairs", ["True class", "predicted", "images", "of the class"], pairs))
    every = [Section("Every class", tables=[class_table(by_class)], folded=True)] if by_class else []
    return Section("Classes", plots=plots, tables=tables, subsections=every)


def _confused_pairs(counts: charts.Array, classes: Sequence[str]) -> list[list[str]]:
    """Return the most confused pairs of classes: true, predicted, images, share of the true class."""
    wrong = counts - np.diag(np.diag(counts))
    pairs = zip(*np.unravel_index(np.argsort(-wrong, axis=None, kind="stable")[:PAIRS], wrong.shape), strict=True)
    return [
        [classes[true], classes[other], f"{wrong[true, other]:.0f}", f"{wrong[true, other] / counts[true].sum():.0%}"]
        for true, other in pairs
        if wrong[true, other]
    ]


def _class_plot(counts: charts.Array, classes: Sequence[str]) -> Picture:
    images, hits = counts.sum(1), np.diag(counts)
    order = np.argsort(hits / np.maximum(images, 1), kind="stable")
    order = order[images[order] > 0]
    caption = "Accuracy by class, with 95 % intervals, the worst first (in brackets: number of test images)"
    if len(order) > CLASSES:
        order = np.concatenate([order[: CLASSES // 2], order[-CLASSES // 2 :]])
        caption = f"The {CLASSES // 2} worst and {CLASSES // 2} best classes, with 95 % intervals (test images)"
    names = [classes[number] for number in order]
    worst, best = ((names[end], 100 * hits[order[end]] / images[order[end]]) for end in (0, -1))
    alt = f"{caption}. Worst: {worst[0]} {worst[1]:.0f} %; best: {best[0]} {best[1]:.0f} %."
    values = (hits[order], images[order], names, hits.sum() / images.sum())
    return chart(charts.class_accuracies, *values, caption=caption, alt=alt)


def curves_sections(runs: Mapping[str, RunFolder], text: str) -> list[Section]:
    """Show loss and accuracy by epoch: of one run every accuracy, of several that on validation data."""
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
    metric, where = METRICS[score].name, ""
    if len(runs) == 1:
        ((name, rows),) = histories.items()
        columns = _score_columns(rows, score, members[name] == 1)
        curves = {column: _curve(rows, key, 100) for column, key in columns.items()}
    else:
        key, where = f"val_{score}", " on validation data"
        curves = {name: _curve(rows, key, 100) for name, rows in histories.items() if key in rows[-1]}
    if curves:
        plots.append(chart(charts.lines, curves, f"{metric}, %", "epoch", caption=f"{metric}{where} by epoch"))
    return [Section("Learning curves", text, plots=plots, notes=notes)]


def _curve(rows: Sequence[Mapping[str, float]], key: str, factor: float) -> charts.Curve:
    return [row["epoch"] for row in rows], [factor * row.get(key, math.nan) for row in rows]


def _score_columns(rows: Sequence[Mapping[str, float]], score: str, single: bool) -> dict[str, str]:
    """Return the columns of accuracy or mAP by display name."""
    columns = {}
    for key in rows[-1]:
        if key.endswith(f"_{score}") and not (single and key == f"val_member_0_{score}"):  # same as the network's
            name = key.removesuffix(f"_{score}").replace("train", "training").replace("val", "validation")
            columns[(name.removesuffix("_member_0") if single else name).replace("_", " ")] = key
    return columns


def corruption_section(accuracies: Mapping[str, Sequence[float]], table: TextTable) -> Section:
    """Show accuracy in % at severities 0 (none) to 5, mean over kinds, and a folded table of every kind."""
    curves = {name: ([0, *SEVERITIES], values) for name, values in accuracies.items()}
    title, x_label = "Accuracy, %, mean over kinds of corruption", "severity (0: clean)"
    plot = chart(charts.lines, curves, title, x_label, caption="Accuracy by severity of corruption")
    every = Section("Every kind of corruption", tables=[table], folded=True)
    return Section("Corruptions", plots=[plot], subsections=[every])


def ood_sections(results: Mapping[str, EvaluationResult]) -> list[Section]:
    """Show the confidence of networks on test and OOD images, and how well scores separate the two."""
    plots, tables = [], []
    for name, result in results.items():
        if result.ood:
            datasets = {"test images": result.predictions}
            datasets |= {dataset_name(dataset): ood.predictions for dataset, ood in result.ood.items()}
            scores = {key: ood_scores(each.logits)["max_probability"] for key, each in datasets.items()}
            confidences = {key: -100 * each.numpy() for key, each in scores.items()}
            caption = f"Confidence of {name} on test and OOD images"
            plots.append(chart(charts.histograms, confidences, name, caption=caption))
            prefix = f"{name}: " if len(results) > 1 else ""
            tables += [replace(table, title=f"{prefix}{table.title}") for table in ood_tables(result.ood)]
    text = "Images of other classes should get low confidence."
    return [Section("Out-of-distribution images", text, plots=plots, tables=tables)] if plots else []


def member_sections(results: Mapping[str, EvaluationResult]) -> list[Section]:
    """Show the advice on each network's members."""
    texts = {name: advice(each.diagnosis, each.predictions.logits.shape[1]) for name, each in results.items()}
    notes = [f"{name}: {text}" if len(results) > 1 else text for name, text in texts.items() if text]
    return [Section("Members", notes=notes)] if notes else []


def metrics_section(columns: Mapping[str, Mapping[str, float]]) -> Section:
    """Show every available metric with its meaning in folded tables; ``columns`` are metrics by network."""
    tables = []
    for title, keys in TABLES.items():
        available = {name: values for name, values in columns.items() if values.keys() & set(keys)}
        rows = [
            [METRICS[key].heading, *(METRICS[key].text(values.get(key, math.nan)) for values in available.values())]
            for key in keys
            if any(key in values for values in available.values())
        ]
        if rows:
            header = [title, *(available if len(available) > 1 else [""])]
            tables.append(TextTable("", header, rows, meanings=MEANINGS))
    return Section("All metrics and their meanings", tables=tables, folded=True)


def reproduce_section(runs: Sequence[RunFolder], notes: Sequence[str] = (), commands: Sequence[str] = ()) -> Section:
    """Show how runs were trained: commands, settings (all, if of one run), and the environment of the first run."""
    environments, notes = list[dict[str, Any]](), list(notes)
    for run in runs:
        if isinstance((about := run.about()).get("command"), str):
            environments.append(about)
        else:
            notes.append(log_missing(InputError(f"{run.path / 'environment.json'} is missing or damaged.")))
    listings = {"Commands": "\n".join([*(each["command"] for each in environments), *commands])}
    if len(runs) == 1:
        listings["Configuration"] = runs[0].config_file.read_text("utf-8").strip()
    if environments:
        listings["Environment"] = json.dumps(environments[0], indent=2, ensure_ascii=False)
    tables = []
    if len(runs) > 1:
        configs = {str(run.path): dict(flatten(run.trained_config())) for run in runs}
        rows = [[path, *(str(config[key]) for key in SETTINGS)] for path, config in configs.items()]
        tables.append(TextTable("Settings", ["Run", *SETTINGS.values()], rows))
    listings = {heading: text for heading, text in listings.items() if text}
    return Section("Reproduce", notes=notes, tables=tables, listings=listings, folded=True)
