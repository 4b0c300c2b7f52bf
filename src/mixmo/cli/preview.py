"""``mixmo preview``: pictures of what the network sees."""

from __future__ import annotations

from pathlib import Path

from mixmo.cli.options import take_flag
from mixmo.config.plan import make_plan, print_help
from mixmo.config.recipes import load_recipe
from mixmo.errors import InputError
from mixmo.names import printable
from mixmo.reporting.preview import preview


def run(words: list[str]) -> None:
    """``mixmo preview RECIPE [--key value …] [--out FOLDER] [--overwrite]``."""
    if {"-h", "--help"} & set(words):
        print_help("preview")
        return
    if not words or words[0].startswith("-"):
        raise InputError("preview needs a recipe's name or a YAML file; `mixmo recipes` lists the recipes.")
    overwrite, settings = take_flag("overwrite", words[1:], "preview")
    plan = make_plan(load_recipe(words[0]), settings, "preview")
    name = Path(words[0]).stem
    for file in preview(plan, name, Path(plan.folder or f"preview/{name}"), overwrite):
        print(printable(str(file)))
