"""``mixmo recipes``: list the shipped recipes."""

from __future__ import annotations

from mixmo.config.recipes import in_groups, method_name
from mixmo.errors import InputError
from mixmo.reporting.text_table import TextTable

ABOUT = "List the shipped recipes."
FIRST = "Start with `mixmo fit quickstart`. With your own images: `mixmo fit RECIPE --data.name folder:PATH`.\n"
NEEDS = ("data", "name"), ("model", "backbone")
LAST = """\
b: batch repetition, how often an image appears in a batch; an epoch shows each image b times.
published: top-1 in % of the README of the paper's code, at the best test epoch."""


def run(words: list[str]) -> None:
    """``mixmo recipes``."""
    if {"-h", "--help"} & set(words):
        print(f"usage: mixmo recipes\n\n{ABOUT}")
        return
    if words:
        raise InputError(f"unrecognized arguments: {' '.join(words)}; recipes takes none.")
    groups = in_groups()
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
        needs = dict.fromkeys(recipe[one][other] for one, other in NEEDS for recipe in recipes.values())
        TextTable(f"{title} ({', '.join(needs)})", header[:shown], [row[:shown] for row in rows]).show()
    print(LAST)
