"""Sections shared by the pages of a run and a comparison."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from markupsafe import Markup

from mixmo.errors import InputError
from mixmo.evaluation.evaluate import Samples
from mixmo.evaluation.predictions import Predictions
from mixmo.metrics.catalogue import METRICS
from mixmo.names import printable
from mixmo.reporting import charts, class_charts
from mixmo.reporting import html as pages

logger = logging.getLogger("mixmo")

MATRIX = 15
"""Classes up to which the whole confusion matrix is drawn."""
CLASSES = 30
"""Classes up to which all are drawn; of more, the worst and the best halves of as many."""
PAIRS = 12
"""Confused pairs that are listed."""


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading.

    Attributes:
        heading: Its heading.
        text: A sentence below it.
        plots: Set side by side where there is room.
        parts: Below the plots.
    """

    heading: str
    text: str = ""
    plots: Sequence[Markup] = ()
    parts: Sequence[Markup] = field(default_factory=tuple)


def missing_sentence(error: InputError) -> Markup:
    """Log that something is missing on a page, and return the sentence that stands in its place."""
    logger.warning("%s", printable(str(error)))
    return pages.part("sentence", f"{error} It is left out.")


def confidence_section(shown: Mapping[str, Samples], parts: Mapping[str, Samples]) -> Section:
    """Return reliability diagrams and risk–coverage curves: how far confidence can be trusted.

    Args:
        shown: What is known of the predictions that get a reliability diagram, by the name of the network.
        parts: The same of those that get a curve.
    """
    plots, start = [], 0.0 if len(shown) > 1 else None  # side by side they have the same axes
    for name, samples in shown.items():
        caption = f"Reliability diagram of {name}"
        means = f"Mean confidence {100 * samples.confidence.mean():.1f} %, accuracy {100 * samples.right.mean():.1f} %."
        plots.append(pages.chart(partial(charts.reliability, samples, name, start), caption, f"{caption}. {means}"))
    errors = "; ".join(f"{name} {100 - 100 * samples.right.mean():.1f} %" for name, samples in parts.items())
    caption = "Risk–coverage curves: how often predictions are wrong if the least confident ones are left out"
    curves = pages.chart(lambda: charts.risk_coverage(parts), caption, f"{caption}. At full coverage: {errors}.")
    text = (
        "Can the confidence be trusted? On the dashed line of a reliability diagram confidence equals accuracy; below "
        "it is overconfident."
    )
    return Section("Confidence", text, [*plots, curves])


def class_section(found: Predictions, samples: Samples) -> Section:
    """Return which classes are confused, and the accuracy of each."""
    classes = len(found.classes)
    numbers = found.targets.numpy() * classes + samples.predicted.numpy()
    counts = np.bincount(numbers, minlength=classes * classes).reshape(classes, classes).astype(float)
    pairs = _pairs(counts, found.classes)
    worst = f" Most confused: {pairs[0][0]} taken for {pairs[0][1]} ({pairs[0][2]} images)." if pairs else ""
    plots, parts = [], []
    if classes <= MATRIX:
        text = f"Confusion matrix of {classes} classes.{worst}"
        plots = [pages.chart(lambda: class_charts.confusion(counts, found.classes), "Confusion matrix", text)]
    elif pairs:
        parts = [pages.table(["True class", "taken for", "images", "of the class"], pairs, "Most confused pairs")]
    return Section("Classes", "", [*plots, _class_plot(counts, found.classes)], parts)


def _pairs(counts: class_charts.Array, classes: Sequence[str]) -> list[list[str]]:
    """Return the most confused pairs of classes: true, predicted, images, share of the true class."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    found = [(int(row), int(column)) for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    return [
        [
            classes[row],
            classes[column],
            f"{wrong[row, column]:.0f}",
            f"{100 * wrong[row, column] / counts[row].sum():.0f} %",
        ]
        for row, column in found
        if wrong[row, column]
    ]


def _class_plot(counts: class_charts.Array, classes: Sequence[str]) -> Markup:
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
    mean = hits.sum() / images.sum()
    return pages.chart(lambda: class_charts.class_accuracies(hits[order], images[order], names, mean), caption, alt)


def ood_section(parts: Mapping[str, Mapping[str, Predictions]], tables: Sequence[Markup]) -> Section:
    """Return how confident networks are on test and OOD images.

    Args:
        parts: Predictions by the network's name and the dataset's.
        tables: How well scores tell them apart.
    """
    plots = [
        pages.chart(partial(charts.confidences, datasets, name), f"Confidence of {name} on test and OOD images")
        for name, datasets in parts.items()
    ]
    text = "Images of none of the classes should get low confidence."
    return Section("Out-of-distribution images", text, plots, tables)


def glossary_notes(keys: Iterable[str]) -> list[str]:
    """Return the meaning of each metric."""
    return [METRICS[key].help for key in keys]
