"""Draw the README's picture of the method, for light and dark pages.

python docs/figures/draw_method.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from sklearn.datasets import load_digits

matplotlib.rcParams["svg.hashsalt"] = "mixmo"  # the same file every time
FOLDER = Path(__file__).parent
THEMES = {"light": ("#1f2328", "#f6f8fa", "#d0d7de"), "dark": ("#e6edf3", "#161b22", "#3d444d")}
"""Colours of text, boxes and their edges."""
MEMBERS = ("#2b6cb0", "#c2571a")
CUT = (slice(0, 16), slice(7, 16))
"""The patch that the second member gets of 16×16 features."""


def draw_box(axes: Axes, x: float, y: float, size: tuple[float, float], text: str, theme: str, color: str) -> None:
    """Draw a rounded box of a size around a point, with a text in it."""
    words, face, _ = THEMES[theme]
    width, height = size
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=0.12", fc=face, ec=color, lw=1.4))
    axes.text(x, y, text, ha="center", va="center", color=words, fontsize=10)


def draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    """Draw an arrow between two points."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=color, lw=1.3))


def draw_image(axes: Axes, pixels: np.ndarray, x: float, y: float, half: float, color: str) -> None:
    """Draw an image around a point, in a frame."""
    axes.imshow(pixels, cmap="gray", extent=(x - half, x + half, y - half, y + half), zorder=2)
    axes.plot([x - half, x + half, x + half, x - half, x - half], [y - half, y - half, y + half, y + half, y - half],
              color=color, lw=1.6, zorder=3)  # fmt: skip


def draw_method(theme: str) -> Figure:
    """Return the picture: two inputs, two encoders, a mask, one network, two classifiers."""
    words, _, edge = THEMES[theme]
    figure = Figure(figsize=(9.6, 3.0))
    axes = figure.add_axes((0, 0, 1, 1))
    digits = load_digits()
    inputs = [np.kron(digits.images[np.flatnonzero(digits.target == label)[0]], np.ones((2, 2))) for label in (3, 7)]
    mixed = inputs[0].copy()
    mixed[CUT] = inputs[1][CUT]
    for member, (pixels, y, label) in enumerate(zip(inputs, (2.15, 0.75), ("“3”", "“7”"), strict=True)):
        color = MEMBERS[member]
        draw_image(axes, pixels, 0.7, y, 0.5, color)
        draw_box(axes, 2.35, y, (1.3, 0.62), f"encoder {member + 1}", theme, color)
        draw_box(axes, 8.2, y, (1.3, 0.62), f"classifier {member + 1}", theme, color)
        draw_arrow(axes, (1.24, y), (1.68, y), color)
        draw_arrow(axes, (3.02, y), (3.62, 1.45 + (y - 1.45) * 0.42), color)
        draw_arrow(axes, (6.93, 1.45 + (y - 1.45) * 0.5), (7.53, y), color)
        draw_arrow(axes, (8.87, y), (9.2, y), color)
        axes.text(9.4, y, label, ha="center", va="center", color=words, fontsize=13)
    draw_image(axes, mixed, 4.2, 1.45, 0.5, edge)
    x, low, high = 4.2 - 0.5 + CUT[1].start / 16, 0.95, 1.95
    for left, right, color in ((3.7, x, MEMBERS[0]), (x, 4.7, MEMBERS[1])):
        axes.plot([left, right, right, left, left], [low, low, high, high, low], color=color, lw=1.6, zorder=4)
    axes.text(4.2, 0.7, "features mixed\nby a random mask", ha="center", va="top", color=words, fontsize=9)
    draw_arrow(axes, (4.76, 1.45), (5.2, 1.45), words)
    draw_box(axes, 6.05, 1.45, (1.65, 1.3), "one shared\nnetwork", theme, edge)
    for x, text in ((0.7, "M images"), (2.35, "M first\nconvolutions"), (8.2, "M classifiers")):
        axes.text(x, 3.0, text, ha="center", va="top", color=words, fontsize=9, alpha=0.75)
    axes.set(xlim=(0, 9.75), ylim=(0, 3.05), aspect="equal")
    axes.axis("off")
    return figure


if __name__ == "__main__":
    for theme in THEMES:
        draw_method(theme).savefig(FOLDER / f"method-{theme}.svg", transparent=True, metadata={"Date": None})
