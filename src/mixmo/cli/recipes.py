"""``mixmo recipes``: list the shipped recipes."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from mixmo.config.recipes import NOTES, catalogue, method_name
from mixmo.errors import InputError

ABOUT = "List the shipped recipes."


def run(words: list[str]) -> None:
    """``mixmo recipes``."""
    if {"-h", "--help"} & set(words):
        print(f"usage: mixmo recipes\n\n{ABOUT}")
        return
    if words:
        raise InputError(f"unrecognized arguments: {' '.join(words)}; recipes takes none.")
    table = Table(
        title="Shipped recipes",
        caption="published: top-1 in % and where it stands; readme = README of the paper's code, best test epoch",
    )
    for column in ("recipe", "dataset", "network", "method", "b", "published", "source"):
        table.add_column(column, no_wrap=True)
    for name, recipe in catalogue().items():
        table.add_row(
            name,
            recipe["data"]["name"],
            recipe["model"]["backbone"],
            method_name(recipe),
            str(recipe["data"].get("batch_repetition", 1)),
            *(str(recipe.get(key, "")) for key in NOTES),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
