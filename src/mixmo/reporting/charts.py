"""Plots for pages, one pair of axes each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixmo.corruptions import SEVERITIES
from mixmo.evaluation.evaluate import Samples
from mixmo.evaluation.intervals import wilson
from mixmo.evaluation.predictions import Predictions
from mixmo.metrics.calibration import bin_gaps, bin_numbers
from mixmo.metrics.ood import ood_scores
from mixmo.metrics.selective import cumulative_errors
from mixmo.names import label
from mixmo.reporting.svg import BLUE, INK

BINS = 15
POINTS = 400
"""Points of a curve at most."""
SIZE = (4.2, 3.0)
NAME = 40
"""Characters of a name in a legend."""

History = Sequence[Mapping[str, float]]


def loss_curves(runs: Mapping[str, History]) -> Figure:
    """Draw the training loss of runs, mean over members, epoch by epoch.

    Args:
        runs: Rows of :func:`mixmo.evaluation.records.read_history`, at least one, by the run's name.
    """
    members = {
        name: sum(re.fullmatch(r"train_member_\d+_accuracy", key) is not None for key in rows[-1])
        for name, rows in runs.items()
    }
    mean = ", mean over members" if max(members.values()) > 1 else ""
    figure, axis = new_axes(f"Training loss{mean}", "epoch")
    for name, rows in runs.items():
        _curve(axis, rows, "train_loss", 1 / max(members[name], 1), label=label(name, NAME))
    return legend(figure, axis, len(runs) > 1)


def accuracy_curves(curves: Mapping[str, tuple[History, str]]) -> Figure:
    """Draw accuracies, epoch by epoch.

    Args:
        curves: Rows and the key of a column, by name.
    """
    figure, axis = new_axes("Accuracy, %", "epoch")
    for name, (rows, key) in curves.items():
        _curve(axis, rows, key, 100, label=label(name, NAME))
    return legend(figure, axis)


def _curve(axis: Axes, rows: History, key: str, factor: float = 1.0, **style: Any) -> None:
    values = [factor * row.get(key, math.nan) for row in rows]
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.plot([row["epoch"] for row in rows], values, marker="." if len(rows) < 30 else "", **style)


def reliability(samples: Samples, title: str, start: float | None = None) -> Figure:
    """Draw accuracy against confidence in 15 bins, with 95 % intervals, and below it the share of images.

    Args:
        samples: What is known of the predictions.
        title: Above it.
        start: Where the axes start, a share; ``None`` shows what there is.
    """
    gaps, counts = (values.numpy() for values in bin_gaps(samples.confidence, samples.right, BINS))
    hits = np.bincount(bin_numbers(samples.confidence, BINS).numpy(), samples.right.numpy(), BINS)
    filled = np.flatnonzero(counts)
    accuracy = hits[filled] / counts[filled]
    confidence = accuracy - gaps[filled] / counts[filled]
    low, high = wilson(hits[filled], counts[filled])
    figure = Figure(figsize=(SIZE[0], 3.6))
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    if start is None:
        start = max(0.0, math.floor(10 * min(confidence.min(), accuracy.min())) / 10)
    axis.plot([100 * start, 100], [100 * start, 100], color=INK, linestyle="--", linewidth=1, alpha=0.6)
    errors = 100 * np.clip(np.stack([accuracy - low, high - accuracy]), 0, None)
    axis.errorbar(100 * confidence, 100 * accuracy, errors, fmt="o-", color=BLUE, markersize=5, elinewidth=1)
    axis.set_title(label(title, NAME))
    axis.set_ylabel("accuracy, %")
    left = filled / BINS
    below.bar(100 * left, 100 * counts[filled] / counts.sum(), 100 / BINS, align="edge", color=BLUE, alpha=0.5)
    below.set_ylabel("images, %")
    below.set_xlabel("confidence, %")
    below.set_xlim(100 * min(start, left.min()), 101)
    return set_label_sizes(figure)


def risk_coverage(parts: Mapping[str, Samples]) -> Figure:
    """Draw the error among the most confident predictions against their share.

    Args:
        parts: What is known of the predictions, by name.
    """
    figure, axis = new_axes("Error on the images kept, %", "coverage: images kept, the most confident first, %")
    for name, samples in parts.items():
        errors = cumulative_errors(samples.confidence, samples.right.bool()).numpy()
        kept = np.arange(1, len(errors) + 1)
        some = np.unique(np.linspace(0, len(errors) - 1, POINTS).round().astype(int))
        axis.plot(100 * kept[some] / len(errors), 100 * errors[some] / kept[some], label=label(name, NAME))
    return legend(figure, axis)


def confidences(datasets: Mapping[str, Predictions], title: str) -> Figure:
    """Draw how confident an ensemble is on test images and on others.

    Args:
        datasets: Predictions by the dataset's name.
        title: Above it.
    """
    figure, axis = new_axes(title, "confidence, %")
    for name, found in datasets.items():
        confidence = -ood_scores(found.logits)["max_probability"].numpy()
        weights = np.full(len(confidence), 100 / len(confidence))
        axis.hist(
            100 * confidence,
            bins=25,
            range=(0, 100),
            weights=weights,
            histtype="step",
            linewidth=1.6,
            label=label(name),
        )
    axis.set_ylabel("images, %")
    return legend(figure, axis)


def accuracy_by_severity(parts: Mapping[str, Sequence[float]]) -> Figure:
    """Draw accuracy against the severity of corruption.

    Args:
        parts: Mean accuracy in % at the severities 0 (none) to 5, by name.
    """
    figure, axis = new_axes("Accuracy, %, mean over kinds of corruption", "severity (0: clean)")
    for name, values in parts.items():
        axis.plot([0, *SEVERITIES], values, marker=".", label=label(name, NAME))
    return legend(figure, axis)


def new_axes(title: str, below: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes.

    Args:
        title: Above it.
        below: The label of the x axis.
        size: Inches.
    """
    figure = Figure(figsize=size)
    axis = figure.subplots()
    axis.set_title(label(title), loc="left")
    axis.set_xlabel(below)
    return figure, axis


def legend(figure: Figure, axis: Axes, wanted: bool = True) -> Figure:
    """Finish a figure, its legend below it."""
    if wanted:
        names = axis.get_legend_handles_labels()[1]
        longest = max(map(len, names), default=0)
        columns = 3 if longest <= 12 else 2 if longest <= 24 else 1
        axis.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.19), ncols=columns, fontsize=8, borderaxespad=0)
    return set_label_sizes(figure)


def set_label_sizes(figure: Figure) -> Figure:
    """Set the sizes of labels."""
    for axis in figure.axes:
        axis.tick_params(labelsize=8)
        axis.xaxis.label.set_fontsize(8.5)
        axis.yaxis.label.set_fontsize(8.5)
    return figure
