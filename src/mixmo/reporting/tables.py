"""Tables of figures, built once and shown on screen, in Markdown and on HTML pages."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from mixmo.corruptions import SEVERITIES
from mixmo.errors import InputError
from mixmo.evaluation.results import Judgement
from mixmo.evaluation.robustness import Corrupted, mean_figures
from mixmo.names import markdown, printable
from mixmo.reporting import html as pages

SCORES = {
    "accuracy": ("top-1 %", 100, 2),
    "accuracy_top5": ("top-5 %", 100, 2),
    "nll": ("NLL", 1, 4),
    "brier": ("Brier", 1, 4),
    "ece": ("ECE %", 100, 2),
}
"""The scores everyone asks for: heading, factor, digits."""

MORE_SCORES = SCORES | {
    "ece_adaptive": ("adaptive ECE %", 100, 2),
    "aurc": ("AURC %", 100, 2),
    "auroc_correct": ("AUROC right/wrong", 1, 4),
}
"""Those of a report."""

Columns = Mapping[str, tuple[str, float, int]]


@dataclass(frozen=True)
class TextTable:
    """A table of texts, which are made safe for wherever it is shown.

    Attributes:
        title: Above it.
        header: Headings.
        rows: Texts, as many in each row as there are headings.
        note: Below it.
        best: Row and column of the cells to stress, the best of their column.

    Example:
        >>> print(TextTable("Two runs", ["", "top-1 %"], [["a", "80"], ["b", "75"]], best={(0, 1)}).markdown())
        Two runs
        <BLANKLINE>
        |  | top-1 % |
        | --- | --- |
        | a | **80** |
        | b | 75 |
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    best: Set[tuple[int, int]] = field(default_factory=frozenset)

    def rich(self) -> Table:
        """Return it for a terminal."""
        note = Text(printable(self.note)) if self.note else None
        table = Table(title=Text(printable(self.title)), caption=note)
        for index, heading in enumerate(self.header):
            table.add_column(Text(printable(heading)), justify="right" if index else "left")
        for row in self._cells(printable):
            table.add_row(*(Text(text, "bold" if best else "") for text, best in row))
        return table

    def markdown(self) -> str:
        """Return it in Markdown."""
        header = [markdown(heading) for heading in self.header]
        rows = [[f"**{text}**" if best else text for text, best in row] for row in self._cells(markdown)]
        lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
        return "\n".join([markdown(self.title), "", *lines, *(["", markdown(self.note)] if self.note else [])])

    def html(self) -> str:
        """Return it for a page of :mod:`mixmo.reporting.html`; a star marks the best of a column."""
        rows = [[f"{text} ★" if best else text for text, best in row] for row in self._cells(str)]
        return pages.table(self.header, rows, self.title) + (pages.paragraph(self.note) if self.note else "")

    def _cells(self, safe: Callable[[str], str]) -> list[list[tuple[str, bool]]]:
        """Return the text of each cell, made safe, and whether it is to be stressed."""
        return [[(safe(cell), (i, j) in self.best) for j, cell in enumerate(row)] for i, row in enumerate(self.rows)]


def figures_table(figures: Mapping[str, float], title: str, columns: Columns = SCORES) -> TextTable:
    """Return the scores of :func:`mixmo.evaluate` for the ensemble and every member, or the one network.

    Example:
        >>> import torch
        >>> from mixmo import evaluate
        >>> len(figures_table(evaluate(torch.zeros(2, 2, 3), torch.tensor([0, 1])), "two images").rows)
        4
    """
    header = ["", *(heading for heading, _, _ in columns.values())]
    members = [key.partition("/")[0] for key in figures if key.startswith("member_") and key.endswith("/nll")]
    if len(members) == 1:
        return TextTable(title, header, [figures_row("single network", figures, columns=columns)])
    rows = {"ensemble, logit average": "", "ensemble, probability average": "probability_average/"}
    rows |= {member.replace("_", " "): f"{member}/" for member in members}
    note = f"diversity: d_re {figures['d_re']:.3f}, disagreement {100 * figures['disagreement']:.2f} %"
    cells = [figures_row(label, figures, prefix, columns) for label, prefix in rows.items()]
    return TextTable(title, header, cells, note)


def figures_row(label: str, figures: Mapping[str, float], prefix: str = "", columns: Columns = SCORES) -> Sequence[str]:
    """Return the row of :func:`figures_table` for the scores under ``prefix``."""
    return [label, *(f"{figures[prefix + key] * by:.{digits}f}" for key, (_, by, digits) in columns.items())]


def ood_tables(figures: Mapping[str, float]) -> list[TextTable]:
    """Return for each other dataset how well every score tells its images from the test images."""
    found: dict[str, dict[str, list[str]]] = {}
    for key, value in figures.items():
        if key.startswith("ood/"):
            dataset, score, _ = key.removeprefix("ood/").rsplit("/", 2)
            found.setdefault(dataset, {}).setdefault(score.replace("_", " "), []).append(f"{value:.4f}")
    header = ["score", "AUROC", "AUPR", "FPR95"]
    return [
        TextTable(f"out of distribution: {dataset}", header, [[name, *cells] for name, cells in scores.items()])
        for dataset, scores in found.items()
    ]


def corruption_table(corrupted: Corrupted) -> TextTable:
    """Return the logit average's top-1 at every severity, and its mean figures, for each kind and over all."""

    def means(cells: Mapping[str, Any]) -> list[str]:
        found = mean_figures(cells)
        return [f"{found[f'corruption/{key}'] * by:.{digits}f}" for key, (_, by, digits) in chosen.items()]

    chosen = {key: SCORES[key] for key in ("accuracy", "nll", "ece")}
    rows = [
        [kind.replace("_", " "), *(f"{100 * cell['accuracy']:.2f}" for cell in cells.values()), *means({kind: cells})]
        for kind, cells in corrupted.kinds.items()
    ]
    rows.append(["mean", *(f"{value:.2f}" for value in severity_means(corrupted)), *means(corrupted.kinds)])
    header = ["top-1 % at severity", *map(str, SEVERITIES), "mean", "mean NLL", "mean ECE %"]
    return TextTable(f"corruptions, {corrupted.source}", header, rows)


def severity_means(corrupted: Corrupted, who: str = "") -> list[float]:
    """Return the mean top-1 over all kinds at each severity, in %.

    Args:
        corrupted: What corruption does.
        who: ``member_0`` …; nothing for the logit average.
    """
    key = f"{who}/accuracy".lstrip("/")
    return [
        100 * statistics.fmean(cells[severity][key] for cells in corrupted.kinds.values()) for severity in SEVERITIES
    ]


def accuracies(found: Judgement, who: str = "") -> list[float]:
    """Return top-1 in % on clean images, and the means of :func:`severity_means` on corrupted ones.

    Args:
        found: What is known, corruptions among it.
        who: ``member_0`` …; nothing for the logit average.

    Raises:
        InputError: if corruptions were not judged.
    """
    if found.corrupted is None:
        raise InputError("nothing is known of corruptions.")
    return [100 * found.figures[f"{who}/accuracy".lstrip("/")], *severity_means(found.corrupted, who)]


def class_table(by_class: Mapping[str, Mapping[str, float]]) -> TextTable:
    """Return the figures of each class."""
    rows = [
        [name, str(own["images"]), f"{100 * own['accuracy']:.2f}", f"{own['nll']:.4f}"]
        for name, own in by_class.items()
    ]
    return TextTable("by class, logit average", ["class", "images", "top-1 %", "NLL"], rows)
