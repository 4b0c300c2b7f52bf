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
from mixmo.evaluation.evaluate import EnsembleMetrics
from mixmo.evaluation.results import EvaluationResult, OODResult
from mixmo.evaluation.robustness import CorruptionResult, mean_metrics
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
    "misclassification_auroc": ("misclassification AUROC", 1, 4),
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


def figures_table(metrics: EnsembleMetrics, title: str, columns: Columns = SCORES) -> TextTable:
    """Return the scores of the ensemble and of every member, or of the one network.

    Example:
        >>> import torch
        >>> from mixmo.evaluation.evaluate import measure
        >>> len(figures_table(measure(torch.zeros(2, 2, 3), torch.tensor([0, 1])), "two images").rows)
        4
    """
    header = ["", *(heading for heading, _, _ in columns.values())]
    if len(metrics.members) == 1:
        return TextTable(title, header, [figures_row("single network", metrics.average, columns)])
    rows = {"ensemble, logit average": metrics.average, "ensemble, probability average": metrics.probability_average}
    rows |= {f"member {index}": member for index, member in enumerate(metrics.members)}
    diversity = metrics.diversity
    note = f"diversity: d_re {diversity['d_re']:.3f}, disagreement {100 * diversity['disagreement']:.2f} %"
    return TextTable(title, header, [figures_row(label, own, columns) for label, own in rows.items()], note)


def figures_row(label: str, metrics: Mapping[str, float], columns: Columns = SCORES) -> Sequence[str]:
    """Return a row of :func:`figures_table`."""
    return [label, *(f"{metrics[key] * by:.{digits}f}" for key, (_, by, digits) in columns.items())]


def ood_tables(found: Mapping[str, OODResult]) -> list[TextTable]:
    """Return for each other dataset how well every score tells its images from the test images."""
    tables = []
    for dataset, result in found.items():
        rows = [
            [score.replace("_", " "), *(f"{value:.4f}" for value in metrics.values())]
            for score, metrics in result.metrics.items()
        ]
        tables.append(TextTable(f"out of distribution: {dataset}", ["score", "AUROC", "AUPR", "FPR95"], rows))
    return tables


def corruption_table(corrupted: CorruptionResult) -> TextTable:
    """Return the logit average's top-1 at every severity, and its mean figures, for each kind and over all."""

    def means(cells: Mapping[str, Any]) -> list[str]:
        found = mean_metrics(cells)
        return [f"{found[key] * by:.{digits}f}" for key, (_, by, digits) in chosen.items()]

    chosen = {key: SCORES[key] for key in ("accuracy", "nll", "ece")}
    rows = [
        [kind.replace("_", " "), *(f"{100 * cell['accuracy']:.2f}" for cell in cells.values()), *means({kind: cells})]
        for kind, cells in corrupted.kinds.items()
    ]
    rows.append(["mean", *(f"{value:.2f}" for value in severity_means(corrupted)), *means(corrupted.kinds)])
    header = ["top-1 % at severity", *map(str, SEVERITIES), "mean", "mean NLL", "mean ECE %"]
    return TextTable(f"corruptions, {corrupted.source}", header, rows)


def severity_means(corrupted: CorruptionResult, who: str = "") -> list[float]:
    """Return the mean top-1 over all kinds at each severity, in %.

    Args:
        corrupted: What corruption does.
        who: ``member_0`` …; nothing for the logit average.
    """
    key = f"{who}/accuracy".lstrip("/")
    return [
        100 * statistics.fmean(cells[severity][key] for cells in corrupted.kinds.values()) for severity in SEVERITIES
    ]


def accuracies(found: EvaluationResult, who: str = "") -> list[float]:
    """Return top-1 in % on clean images, and the means of :func:`severity_means` on corrupted ones.

    Args:
        found: What is known, corruptions among it.
        who: ``member_0`` …; nothing for the logit average.

    Raises:
        InputError: if corruptions were not evaluated.
    """
    if found.corruptions is None:
        raise InputError("nothing is known of corruptions.")
    return [100 * found.flat()[f"{who}/accuracy".lstrip("/")], *severity_means(found.corruptions, who)]


def class_table(by_class: Mapping[str, Mapping[str, float]]) -> TextTable:
    """Return the figures of each class."""
    rows = [
        [name, str(own["images"]), f"{100 * own['accuracy']:.2f}", f"{own['nll']:.4f}"]
        for name, own in by_class.items()
    ]
    return TextTable("by class, logit average", ["class", "images", "top-1 %", "NLL"], rows)
