"""Tables of figures, built once and shown on screen, in Markdown and on HTML pages."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from mixmo.corruptions import SEVERITIES
from mixmo.errors import InputError
from mixmo.evaluation.results import Judgement
from mixmo.evaluation.robustness import Corrupted, mean_figures
from mixmo.names import markdown, printable
from mixmo.reporting import html as pages
from mixmo.reporting.glossary import CORRUPTED, METRICS, OOD_SCORES

SCORES = ("accuracy", "accuracy_top5", "nll", "brier", "ece")
"""The metrics of the table on screen."""


@dataclass(frozen=True)
class TextTable:
    """A table of texts, which are made safe for wherever it is shown.

    Attributes:
        title: Above it.
        header: Headings.
        rows: Texts, as many in each row as there are headings.
        note: Below it.
        best: Row and column of the cells to stress, the best of their column.
        details: What stands behind cells, such as their intervals, by row and column.

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
    details: Mapping[tuple[int, int], str] = field(default_factory=dict)

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

    def html(self, helps: Sequence[str] = ()) -> Markup:
        """Return it for a page; a star marks the best of a column.

        Args:
            helps: For each heading, what it means.
        """
        found = pages.table(self.header, self.rows, self.title, (), helps, self.best, self.details)
        return found + (pages.part("sentence", self.note) if self.note else Markup())

    def _cells(self, safe: Callable[[str], str]) -> list[list[tuple[str, bool]]]:
        """Return the text of each cell with what stands behind it, made safe, and whether it is to be stressed."""
        return [
            [
                (safe(f"{cell} {self.details.get((i, j), '')}".rstrip(" ")), (i, j) in self.best)
                for j, cell in enumerate(row)
            ]
            for i, row in enumerate(self.rows)
        ]


def figures_table(figures: Mapping[str, float], title: str) -> TextTable:
    """Return the scores of :func:`mixmo.evaluate` for the ensemble and every member, or the one network.

    Example:
        >>> import torch
        >>> from mixmo import evaluate
        >>> len(figures_table(evaluate(torch.zeros(2, 2, 3), torch.tensor([0, 1])), "two images").rows)
        4
    """
    header = ["", *(METRICS[key].column for key in SCORES)]
    members = [key.partition("/")[0] for key in figures if key.startswith("member_") and key.endswith("/nll")]
    rows = {"ensemble, logit average": "", "ensemble, probability average": "probability_average/"}
    rows |= {member.replace("_", " "): f"{member}/" for member in members}
    note = (
        f"d_re {figures['d_re']:.3f}, disagreement {100 * figures['disagreement']:.2f} %" if "d_re" in figures else ""
    )
    if len(members) == 1:
        rows = {"single network": ""}
    cells = [[name, *(METRICS[key].number(figures[prefix + key]) for key in SCORES)] for name, prefix in rows.items()]
    return TextTable(title, header, cells, note)


def ood_tables(figures: Mapping[str, float]) -> list[TextTable]:
    """Return for each other dataset how well every score tells its images from the test images."""
    found: dict[str, dict[str, list[str]]] = {}
    for key, value in figures.items():
        if key.startswith("ood/"):
            dataset, score, metric = key.removeprefix("ood/").rsplit("/", 2)
            cells = found.setdefault(dataset, {}).setdefault(OOD_SCORES[score], [])
            cells.append(METRICS[metric].number(value))
    header = ["score", *(METRICS[key].column for key in ("auroc", "aupr", "fpr95"))]
    return [
        TextTable(f"out of distribution: {dataset}", header, [[name, *cells] for name, cells in scores.items()])
        for dataset, scores in found.items()
    ]


def corruption_table(corrupted: Corrupted) -> TextTable:
    """Return the logit average's accuracy at every severity, and its mean figures, for each kind and over all."""

    def means(cells: Mapping[str, Any]) -> list[str]:
        found = mean_figures(cells)
        return [METRICS[key].number(found[key]) for key in CORRUPTED]

    rows = [
        [kind.replace("_", " "), *(f"{100 * cell['accuracy']:.2f}" for cell in cells.values()), *means({kind: cells})]
        for kind, cells in corrupted.kinds.items()
    ]
    rows.append(["mean", *(f"{value:.2f}" for value in severity_means(corrupted)), *means(corrupted.kinds)])
    header = ["Accuracy, %, at severity", *map(str, SEVERITIES), "mean", "mean NLL", "mean ECE, %"]
    return TextTable(f"corruptions, {corrupted.source}", header, rows)


def severity_means(corrupted: Corrupted, who: str = "") -> list[float]:
    """Return the mean accuracy over all kinds at each severity, in %.

    Args:
        corrupted: What corruption does.
        who: ``member_0`` …; nothing for the logit average.
    """
    key = f"{who}/accuracy".lstrip("/")
    return [
        100 * statistics.fmean(cells[severity][key] for cells in corrupted.kinds.values()) for severity in SEVERITIES
    ]


def accuracies(found: Judgement, who: str = "") -> list[float]:
    """Return accuracy in % on clean images, and the means of :func:`severity_means` on corrupted ones.

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
    return TextTable("by class, logit average", ["class", "images", "Accuracy, %", "NLL"], rows)
