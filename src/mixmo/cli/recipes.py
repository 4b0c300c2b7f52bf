"""``mixmo recipes``: list the shipped recipes."""

from __future__ import annotations

from mixmo.config.recipes import NOTES, catalogue, method_name
from mixmo.errors import InputError
from mixmo.reporting.text_table import TextTable

ABOUT = "List the shipped recipes."
CAPTION = "published: top-1 in % and where it stands; readme = README of the paper's code, best test epoch"


def run(words: list[str]) -> None:
    """``mixmo recipes``."""
    if {"-h", "--help"} & set(words):
        print(f"usage: mixmo recipes\n\n{ABOUT}")
        return
    if words:
        raise InputError(f"unrecognized arguments: {' '.join(words)}; recipes takes none.")
    header = ["recipe", "dataset", "network", "method", "b", "published", "source"]
    rows = []
    for name, recipe in catalogue().items():
        data, notes = recipe["data"], [str(recipe.get(key, "")) for key in NOTES]
        repetition = str(data.get("batch_repetition", 1))
        rows.append([name, data["name"], recipe["model"]["backbone"], method_name(recipe), repetition, *notes])
    TextTable("Shipped recipes", header, rows, CAPTION).show(160)
