"""Text tables for the terminal, Markdown and HTML pages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Mapping, Sequence, Set
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from mixmo.escaping import markdown, printable

WIDTH = 100
"""Characters in a printed line if the output is not a terminal."""
LONGEST_NAME = 20
"""Characters up to which a name in the first column is not folded."""


@dataclass(frozen=True)
class TextTable:
    """A table of strings, escaped for each output format.

    Attributes:
        title: Text above the table.
        header: Column headings.
        rows: Cells of each row, one for each heading.
        note: Text below the table.
        best: Cells to highlight, as (row, column).
        details: Text after cells, such as intervals, by (row, column).
        meanings: Explanations of column headings and row names, for pages.

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

    def show(self, leave_out: Container[str] = ()) -> None:
        """Print the table at the width of the terminal, or 100 characters if the output is not a terminal.

        Columns that do not fit are printed below, with the first column repeated; those with headings in ``leave_out``
        are omitted.
        """
        console = Console(width=None if sys.stdout.isatty() else WIDTH)
        columns = [index for index, heading in enumerate(self.header) if heading not in leave_out]
        title = self.title
        while columns:
            count = len(columns)
            while count > 2 and _least_width(self._part(columns[:count])) > console.width:
                count -= 1
            shown, rest = columns[:count], columns[count:]
            console.print(self._part(shown, title, "" if rest else self.note))
            columns, title = [0, *rest] if rest else [], ""

    def rich(self) -> Table:
        """Return the table for a terminal, with details on the line below their cell."""
        return self._part(range(len(self.header)), self.title, self.note)

    def _part(self, columns: Sequence[int], title: str = "", note: str = "") -> Table:
        heading, caption = Text(printable(title)), Text(printable(note)) if note else None
        width = min(heading.cell_len, WIDTH)  # the title stays on one line
        table = Table(title=heading if title else None, caption=caption, min_width=width)
        for index in columns:
            no_wrap = any(index == column for _, column in self.details)  # an interval stays on one line
            no_wrap |= index == 0 and not self.details and all(len(row[0]) <= WIDTH // 3 for row in self.rows)
            justify: JustifyMethod = "right" if index else "left"
            table.add_column(Text(printable(self.header[index])), justify=justify, overflow="fold", no_wrap=no_wrap)
        for row in self._cells(printable, "\n"):
            cells = [row[index] for index in columns]
            table.add_row(*(Text(text, "bold" if best else "") for text, best in cells))
        return table

    def markdown(self) -> str:
        """Return the table in Markdown."""
        header = [markdown(heading) for heading in self.header]
        rows = [[f"**{text}**" if best else text for text, best in row] for row in self._cells(markdown)]
        lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
        return "\n".join([markdown(self.title), "", *lines, *(["", markdown(self.note)] if self.note else [])])

    def _cells(self, escape: Callable[[str], str], separator: str = " ") -> list[list[tuple[str, bool]]]:
        """Return the escaped text of each cell with its details, and whether to highlight it."""
        return [
            [
                (f"{escape(cell)}{separator}{escape(self.details.get((i, j), ''))}".rstrip(" \n"), (i, j) in self.best)
                for j, cell in enumerate(row)
            ]
            for i, row in enumerate(self.rows)
        ]


def _least_width(table: Table) -> int:
    """Return the width that a table needs to not break words, nor lines in columns that do not wrap."""
    widths = []
    for column in table.columns:
        split = str.splitlines if column.no_wrap else str.split
        parts = [part for cell in (column.header, *column.cells) for part in split(str(cell))]
        widths.append(max(map(cell_len, parts), default=0))
    if not table.columns[0].no_wrap:
        widths[0] = min(widths[0], LONGEST_NAME)
    return sum(width + len(" │ ") for width in widths) + 1
