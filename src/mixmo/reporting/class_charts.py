"""Plots by class, member or network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from mixmo.evaluation.intervals import wilson
from mixmo.evaluation.predictions import Predictions
from mixmo.names import label, printable
from mixmo.reporting.charts import SIZE, new_axes, set_label_sizes
from mixmo.reporting.svg import BLUE, INK, RED

NAME = 32
"""Characters of a name next to an axis."""

Array = npt.NDArray[np.float64]


class Difference(NamedTuple):
    """A difference and the ends of its 95 % interval, NaN where there is none."""

    value: float
    low: float
    high: float


def confusion(counts: Array, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix: a row for each true class, correct predictions blue, wrong ones red.

    Args:
        counts: (K, K) numbers of images, by true and predicted class.
        classes: K names.
    """
    side = max(2.4, 0.33 * len(classes) + 1.0)
    figure, axis = new_axes("Images by true and predicted class", "predicted class", (side, side))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    colors = [[BLUE if row == column else RED for column in range(len(counts))] for row in range(len(counts))]
    texts = [[f"{count:.0f}" if count else "" for count in row] for row in counts]
    _cells(axis, np.sqrt(shares), colors, texts, [_short(name) for name in classes])
    axis.set_ylabel("true class")
    return set_label_sizes(figure)


def disagreement(found: Predictions, title: str) -> Figure:
    """Draw the share of images for which each two members predict different classes.

    Args:
        found: Predictions of several members.
        title: Above it.
    """
    predicted = found.logits.argmax(2)
    shares = (predicted[:, :, None] != predicted[:, None]).double().mean(0).numpy()
    side = max(2.4, 0.5 * len(shares) + 1.0)
    figure, axis = new_axes(title, "", (side, side))
    texts = [[f"{100 * share:.1f}" if row != column else "" for column, share in enumerate(line)]
             for row, line in enumerate(shares)]  # fmt: skip
    names = [f"member {index}" for index in range(len(shares))]
    _cells(axis, shares / max(shares.max(), 1e-9), [[BLUE] * len(shares)] * len(shares), texts, names)
    return set_label_sizes(figure)


def _cells(
    axis: Axes, alphas: Array, colors: Sequence[Sequence[str]], texts: Sequence[Sequence[str]], names: Sequence[str]
) -> None:
    count = len(alphas)
    for row, column in np.ndindex(count, count):
        alpha = 0.75 * alphas[row, column]
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=colors[row][column], alpha=alpha, linewidth=0))
        axis.text(column, row, texts[row][column], ha="center", va="center", fontsize=7.5)
    axis.set_xlim(-0.5, count - 0.5)
    axis.set_ylim(count - 0.5, -0.5)
    axis.set_aspect("equal")
    axis.grid(visible=False)
    long = max(map(len, names)) > 2
    axis.set_xticks(range(count), names, rotation=45 if long else 0, ha="right" if long else "center")
    axis.set_yticks(range(count), names)


def class_accuracies(hits: Array, counts: Array, classes: Sequence[str], mean: float) -> Figure:
    """Draw the accuracy of classes, with 95 % intervals; the axis starts where they differ.

    Args:
        hits: (k,) images classified correctly.
        counts: (k,) images, at least one of each class.
        classes: k names, from top to bottom.
        mean: The accuracy over all images, a dashed line.
    """
    figure, axis = new_axes("Accuracy by class, %", "", (SIZE[0] - 0.8, 0.21 * len(classes) + 0.6))
    low, high = wilson(hits, counts)
    places = np.arange(len(classes))
    axis.barh(places, 100 * (high - low), 0.6, 100 * low, color=BLUE, alpha=0.35)
    axis.plot(100 * hits / counts, places, "o", color=BLUE, markersize=4.5)
    axis.axvline(100 * mean, color=INK, linestyle="--", linewidth=1, alpha=0.6)
    axis.set_yticks(places, [f"{_short(name)} ({count:.0f})" for name, count in zip(classes, counts, strict=True)])
    axis.set_ylim(len(classes) - 0.4, -0.6)
    axis.set_xlim(100 * low.min() - 1, 101)
    return set_label_sizes(figure)


def differences(parts: Mapping[str, Difference], heading: str, better: bool | None) -> Figure:
    """Draw differences with their intervals: blue where better, red where worse, hollow where 0 is in the interval.

    Args:
        parts: Difference, low and high end, by name.
        heading: The metric and its unit.
        better: Whether more is better.
    """
    figure, axis = new_axes(heading, "difference, 95 % interval", (SIZE[0] - 1, 0.32 * len(parts) + 0.75))
    for place, (value, low, high) in enumerate(parts.values()):
        color = INK if better is None or not value else BLUE if (value > 0) == better else RED
        face = "none" if low <= 0 <= high else color
        axis.plot([low, high], [place, place], "-", color=color, linewidth=1.6)
        axis.plot([value], [place], "o", color=color, markerfacecolor=face, markersize=6)
    axis.axvline(0, color=INK, linewidth=1, alpha=0.6)
    axis.set_yticks(range(len(parts)), [_short(name) for name in parts])
    axis.set_ylim(len(parts) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(4))  # more would run into each other
    return set_label_sizes(figure)


def _short(name: str) -> str:
    """Return a name's beginning and end, where names that are alike often differ, as Matplotlib shows it."""
    name = printable(name)
    return label(name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[1 - NAME // 2 :]}")
