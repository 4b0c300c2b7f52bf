"""Plots on pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from mixmo.escaping import label, printable
from mixmo.evaluation.intervals import wilson
from mixmo.metrics.calibration_errors import bin_gaps, bin_numbers
from mixmo.metrics.samples import Samples

INK = "#010203"
"""Colour of text and axes; unique, so that dark pages can replace it."""
COLORS = ("#0072b2", "#d55e00", "#00845f", "#b5568a", "#a87300", "#2c88bf")
"""Okabe and Ito's palette for colour-blind readers, darkened for thin lines."""
BLUE, RED = COLORS[:2]
DARK = dict(
    zip((INK, *COLORS), ("#e6e9ee", "#4aa3e0", "#f5813f", "#2cc295", "#e08fbd", "#e9b040", "#9ad6f7"), strict=True)
)
"""The replacement of each colour on dark pages."""
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mixmo",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.prop_cycle": cycler(color=COLORS, linestyle=LINES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color",
         "grid.color"), INK,
    ),
}  # fmt: skip

BINS = 15
SIZE = (4.2, 3.0)
LEGEND = 40
"""Largest number of characters in a legend's name."""
TICK = 32
"""Largest number of characters in a tick label."""

Array = npt.NDArray[np.float64]
Curve = tuple[Sequence[float] | Array, Sequence[float] | Array]
"""Values of x and of y."""


def lines(curves: Mapping[str, Curve], title: str, x_label: str) -> Figure:
    """Draw lines, with a legend if there are several."""
    figure, axis = new_axes(title, x_label)
    for name, (x, y) in curves.items():
        axis.plot(x, y, marker="." if len(x) < 30 else "", label=label(name, LEGEND))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return _with_legend(figure, axis) if len(curves) > 1 else figure


def reliability(samples: Samples, title: str, start: float | None = None) -> Figure:
    """Draw accuracy against confidence in 15 bins, with 95 % intervals, above the share of images in each bin.

    The axes begin at ``start`` (from 0 to 1); ``None`` fits them to the data.
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
    axis.set(title=label(title, LEGEND), ylabel="accuracy, %")
    left = filled / BINS
    below.bar(100 * left, 100 * counts[filled] / counts.sum(), 100 / BINS, align="edge", color=BLUE, alpha=0.5)
    below.set(ylabel="images, %", xlabel="confidence, %", xlim=(100 * min(start, left.min()), 101))
    return figure


def histograms(values: Mapping[str, Array], title: str) -> Figure:
    """Draw histograms of confidences in %, a line for each dataset."""
    figure, axis = new_axes(title, "confidence, %")
    style: Any = {"bins": 25, "range": (0, 100), "histtype": "step", "linewidth": 1.6}
    for name, confidences in values.items():
        axis.hist(confidences, weights=np.full(len(confidences), 100 / len(confidences)), label=label(name), **style)
    axis.set_ylabel("images, %")
    return _with_legend(figure, axis)


def confusion(counts: Array, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix (K, K) with rows of true classes: correct predictions in blue, wrong ones in red."""
    side = max(2.4, 0.33 * len(classes) + 1.0)
    figure, axis = new_axes("Images by true and predicted class", "predicted class", (side, side))
    shares = np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1))
    for row, column in np.ndindex(*counts.shape):
        color, alpha = BLUE if row == column else RED, 0.75 * shares[row, column]
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=color, alpha=alpha, linewidth=0))
        if counts[row, column]:
            axis.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=7.5)
    ends = (-0.5, len(classes) - 0.5)
    axis.set(xlim=ends, ylim=ends[::-1], aspect="equal", ylabel="true class")
    axis.grid(visible=False)
    names = [_short(name) for name in classes]
    long = max(map(len, names)) > 2
    axis.set_xticks(range(len(names)), names, rotation=45 if long else 0, ha="right" if long else "center")
    axis.set_yticks(range(len(names)), names)
    return figure


def class_accuracies(hits: Array, counts: Array, classes: Sequence[str], mean: float) -> Figure:
    """Draw the accuracy of each class, hits / counts, with 95 % intervals, and the mean over all images as a line."""
    figure, axis = new_axes("Accuracy by class, %", "", (SIZE[0] - 0.8, 0.21 * len(classes) + 0.6))
    low, high = wilson(hits, counts)
    rows = np.arange(len(classes))
    axis.barh(rows, 100 * (high - low), 0.6, 100 * low, color=BLUE, alpha=0.35)
    axis.plot(100 * hits / counts, rows, "o", color=BLUE, markersize=4.5)
    axis.axvline(100 * mean, color=INK, linestyle="--", linewidth=1, alpha=0.6)
    axis.set_yticks(rows, [f"{_short(name)} ({count:.0f})" for name, count in zip(classes, counts, strict=True)])
    axis.set(xlim=(100 * low.min() - 1, 101), ylim=(len(classes) - 0.4, -0.6))
    return figure


def differences(parts: Mapping[str, Sequence[float]], heading: str, better: bool | None) -> Figure:
    """Draw differences (value, low, high) by name: blue if better, red if worse, hollow if the interval contains 0."""
    figure, axis = new_axes(heading, "difference, 95 % interval", (SIZE[0] - 1, 0.32 * len(parts) + 0.75))
    for row, (value, low, high) in enumerate(parts.values()):
        color = INK if better is None or not value else BLUE if (value > 0) == better else RED
        face = "none" if low <= 0 <= high else color
        axis.plot([low, high], [row, row], "-", color=color, linewidth=1.6)
        axis.plot([value], [row], "o", color=color, markerfacecolor=face, markersize=6)
    axis.axvline(0, color=INK, linewidth=1, alpha=0.6)
    axis.set_yticks(range(len(parts)), [_short(name) for name in parts])
    axis.set_ylim(len(parts) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(4))  # more labels would overlap
    return figure


def new_axes(title: str, x_label: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes; ``size`` is in inches."""
    figure = Figure(figsize=size)
    axis = figure.subplots()
    axis.set_title(label(title), loc="left")
    axis.set_xlabel(x_label)
    return figure, axis


def _with_legend(figure: Figure, axis: Axes) -> Figure:
    """Add a legend below a figure."""
    longest = max(map(len, axis.get_legend_handles_labels()[1]))
    columns = 3 if longest <= 12 else 2 if longest <= 24 else 1
    axis.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.19), ncols=columns, borderaxespad=0)
    return figure


def _short(name: str) -> str:
    """Shorten a name to its beginning and end, where similar names often differ, and escape it for Matplotlib."""
    name = printable(name)
    return label(name if len(name) <= TICK else f"{name[: TICK // 2]}…{name[1 - TICK // 2 :]}")
