"""The charts of reports: pictures of a run, or of several things by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixmo.corruptions import SEVERITIES
from mixmo.evaluation.evaluate import Samples, per_sample
from mixmo.evaluation.predictions import Predictions
from mixmo.metrics.calibration import bin_gaps, bin_numbers
from mixmo.metrics.ood import ood_scores
from mixmo.metrics.selective import cumulative_errors
from mixmo.names import label

BINS = 15
ACROSS = 3
"""Charts side by side."""
ACROSS_TITLE = 24
"""Characters above an image of a grid."""


def answers(tested: Predictions) -> dict[str, Samples]:
    """Return what is known of each answer of the logit average and, for several members, of each of them.

    Example:
        >>> import torch
        >>> one = Predictions(torch.zeros(4, 2, 3), torch.zeros(4, dtype=torch.long), ["a", "b", "c"])
        >>> list(answers(one))
        ['ensemble', 'member 0', 'member 1']
    """
    members = tested.logits.unbind(1)
    if len(members) == 1:
        return {"network": per_sample(members[0], tested.targets)}
    average = {"ensemble": tested.average()}
    return average | {f"member {i}": per_sample(each, tested.targets) for i, each in enumerate(members)}


def learning_curves(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Draw the loss and every accuracy of a run, epoch by epoch.

    Args:
        rows: Those of :func:`mixmo.evaluation.records.read_history`, at least one.
    """
    figure, (left, right) = _axes(2)
    _curve(left, rows, "train_loss")
    left.set_title("training loss, summed over members", fontsize=9)
    for key in rows[-1]:
        if key.endswith("accuracy"):
            style = "-" if key == "val_accuracy" else "--" if key.startswith("val") else ":"
            shown = label(key.replace("_accuracy", "").replace("_", " "))
            _curve(right, rows, key, 100, linestyle=style, label=shown)
    right.set_title("top-1 %", fontsize=9)
    return _finished(figure, "epoch", legends=[right])


def compared_curves(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw the loss of several runs, and their accuracy on validation data where they had some, step by step.

    Args:
        runs: Rows of :func:`mixmo.evaluation.records.read_history`, at least one, by the run's name.
    """
    validated = {name: rows for name, rows in runs.items() if "val_accuracy" in rows[-1]}
    figure, axes = _axes(2 if validated else 1)
    for name, rows in runs.items():
        members = sum(key.startswith("train_member_") and key.endswith("_accuracy") for key in rows[-1])
        _curve(axes[0], rows, "train_loss", 1 / max(members, 1), "step", label=label(name))
    axes[0].set_title("training loss, mean over members", fontsize=9)
    for name, rows in validated.items():
        _curve(axes[1], rows, "val_accuracy", 100, "step", label=label(name))
    for axis in axes[1:]:
        axis.set_title("top-1 % on validation data", fontsize=9)
    return _finished(figure, "step", legends=axes)


def _curve(
    axis: Axes, rows: Sequence[Mapping[str, float]], key: str, factor: float = 1.0, along: str = "epoch", **style: Any
) -> None:
    values = [factor * row.get(key, math.nan) for row in rows]
    axis.plot([row[along] for row in rows], values, marker=".", markersize=4, **style)


def reliability(parts: Mapping[str, Samples]) -> Figure:
    """Draw the accuracy in each of 15 bins of confidence; on the diagonal confidence means what it says.

    Args:
        parts: What is known of the answers, by name.
    """
    figure, axes = _axes(len(parts))
    for axis, (name, samples) in zip(axes, parts.items(), strict=True):
        _, counts = bin_gaps(samples.confidence, samples.right, BINS)
        hits = np.bincount(bin_numbers(samples.confidence, BINS).numpy(), samples.right.numpy(), BINS)
        centres = (np.arange(BINS) + 0.5) / BINS
        axis.bar(centres, hits / counts.clamp(min=1).numpy(), 0.9 / BINS, alpha=0.8, label="accuracy")
        axis.bar(centres, counts / counts.max(), 0.9 / BINS, fill=False, edgecolor="0.5", label="images (scaled)")
        axis.plot([0, 1], [0, 1], "k--", linewidth=1)
        axis.set_title(label(name), fontsize=9)
    return _finished(figure, "confidence", legends=axes[:1])


def risk_coverage(parts: Mapping[str, Samples]) -> Figure:
    """Draw the error among the most confident answers, against their share.

    Args:
        parts: What is known of the answers, by name.
    """
    figure, (axis,) = _axes(1)
    for name, samples in parts.items():
        errors = cumulative_errors(samples.confidence, samples.right.bool()).numpy()
        kept = np.arange(1, len(errors) + 1)
        axis.plot(100 * kept / len(errors), 100 * errors / kept, label=label(name), linewidth=1.2)
    return _finished(figure, "coverage, %", "error, %", [axis])


def confidences(parts: Mapping[str, Mapping[str, Predictions]]) -> Figure:
    """Draw how confident ensembles are on test images and on others.

    Args:
        parts: Predictions by the ensemble's name and the dataset's.
    """
    figure, axes = _axes(len(parts))
    for axis, (name, datasets) in zip(axes, parts.items(), strict=True):
        for dataset, found in datasets.items():
            confidence = -ood_scores(found.logits)["max_probability"].numpy()
            axis.hist(confidence, bins=30, range=(0, 1), density=True, alpha=0.5, label=label(dataset))
        axis.set_title(label(name), fontsize=9)
    return _finished(figure, "largest probability", legends=axes)


def disagreements(parts: Mapping[str, Predictions]) -> Figure:
    """Draw the share of images for which each two members predict different classes.

    Args:
        parts: Predictions of several members, by the ensemble's name.
    """
    figure, axes = _axes(len(parts))
    for axis, (name, found) in zip(axes, parts.items(), strict=True):
        predicted = found.logits.argmax(2)
        matrix = 100 * (predicted[:, :, None] != predicted[:, None]).double().mean(0).numpy()
        axis.imshow(matrix, cmap="Blues", vmin=0, vmax=max(2 * matrix.max(), 1e-9))  # pale, so that text can be read
        for row, column in np.ndindex(*matrix.shape):
            axis.text(column, row, f"{matrix[row, column]:.1f} %", ha="center", va="center", fontsize=8)
        names = [f"member {index}" for index in range(len(matrix))]
        axis.set_xticks(range(len(matrix)), names)
        axis.set_yticks(range(len(matrix)), names)
        axis.set_title(label(name), fontsize=9)
    return _finished(figure)


def accuracy_by_severity(parts: Mapping[str, Sequence[float]]) -> Figure:
    """Draw top-1 against the severity of corruption.

    Args:
        parts: Mean top-1 in % at the severities 0 (none) to 5, by name.
    """
    figure, (axis,) = _axes(1)
    for name, values in parts.items():
        axis.plot([0, *SEVERITIES], values, marker=".", label=label(name))
    axis.set_ylim(bottom=0)
    return _finished(figure, "severity (0: clean)", "top-1 %, mean over kinds", [axis])


def image_grid(images: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """Draw images (H, W, C) uint8, six in a row, under their titles, of which each line is a name of its own."""
    across = 6
    down = math.ceil(len(images) / across)
    lines = max(title.count("\n") for title in titles)
    figure = Figure(figsize=(9, (1.6 + 0.3 * lines) * down))
    for axis in figure.subplots(down, across, squeeze=False).flat:
        axis.set_axis_off()
    for axis, image, title in zip(figure.axes, images, titles, strict=False):
        axis.imshow(image.squeeze(), cmap="gray", interpolation="nearest")
        axis.set_title("\n".join(label(line, ACROSS_TITLE) for line in title.split("\n")), fontsize=7)
    figure.tight_layout()
    return figure


def _axes(count: int) -> tuple[Figure, list[Axes]]:
    across, down = min(count, ACROSS), math.ceil(count / ACROSS)
    figure = Figure(figsize=(3.6 * across, 3.0 * down))
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def _finished(figure: Figure, below: str = "", beside: str = "", legends: Sequence[Axes] = ()) -> Figure:
    for axis in figure.axes:
        axis.set_xlabel(below, fontsize=8)
        axis.set_ylabel(beside, fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in legends:
        axis.legend(fontsize=7)
    figure.tight_layout()
    return figure
