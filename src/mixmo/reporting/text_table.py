"""Tables of texts for the terminal, Markdown and pages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixmo.escaping import markdown, printable


@dataclass(frozen=True)
class TextTable:
    """A table of texts, which are made safe wherever it is shown.

    Attributes:
        title: Above it.
        header: Headings.
        rows: Texts, as many in each row as there are headings.
        note: Below it.
        best: Row and column of the cells to stress.
        details: What stands behind cells, such as their intervals, by row and column.
        meanings: What headings and names of rows mean, on pages.

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
    meanings: Mapping[str, str] = field(default_factory=dict)

    def show(self, width: int = 120) -> None:
        """Print it, as wide as the terminal, or as ``width`` where the output is none."""
        Console(width=None if sys.stdout.isatty() else width).print(self.rich())

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

    def _cells(self, safe: Callable[[str], str]) -> list[list[tuple[str, bool]]]:
        """Return the text of each cell with its details, made safe, and whether it is to be stressed."""
        return [
            [
                (safe(f"{cell} {self.details.get((i, j), '')}".rstrip(" ")), (i, j) in self.best)
                for j, cell in enumerate(row)
            ]
            for i, row in enumerate(self.rows)
        ]
