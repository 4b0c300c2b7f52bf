"""``mixmo recipes``: list the shipped recipes."""

from __future__ import annotations

from mixmo.config.recipes import group_recipes, method_name
from mixmo.errors import InputError
from mixmo.reporting.text_table import TextTable

ABOUT = "List the shipped recipes."
FIRST = "Start with `mixmo fit quickstart`. With your own images: `mixmo fit RECIPE --data.name folder:PATH`.\n"
SUBTITLE = ("data", "name"), ("model", "backbone")
LAST = """\
b: batch repetition, how often an image appears in a batch; an epoch shows each image b times.
published: top-1 in % from the README of the paper's code, at the best test epoch."""


def run(arguments: list[str]) -> None:
    """Run ``mixmo recipes``; no ``Command``, which would import torch."""
    if {"-h", "--help"} & set(arguments):
        print(f"usage: mixmo recipes\n\n{ABOUT}")
        return
    if arguments:
        raise InputError(f"unrecognized arguments: {' '.join(arguments)}; recipes takes none.")
    groups = group_recipes()
    print(FIRST)
    for title, recipes in groups.items():
        rows = [
            [
                name, method_name(recipe), str(recipe["data"].get("batch_repetition", 1)),
                str(recipe["trainer"]["max_epochs"]), str(recipe.get("published", "")),
            ]
            for name, recipe in recipes.items()
        ]  # fmt: skip
        header = ["recipe", "method", "b", "epochs", "published"]
        shown = len(header) if any(row[-1] for row in rows) else -1
        names = dict.fromkeys(recipe[section][key] for section, key in SUBTITLE for recipe in recipes.values())
        TextTable(f"{title} · {', '.join(names)}", header[:shown], [row[:shown] for row in rows]).show()
    print(LAST)
