"""``mixmo preview``: draw augmented inputs and masks before training."""

from __future__ import annotations

from pathlib import Path

from mixmo.cli.options import Command, Overwrite, Positional
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.escaping import printable
from mixmo.reporting.preview import preview
from mixmo.validation import FilePath, settings_class


@settings_class()
class Options:
    """The recipe, and the output."""

    recipe: Positional[str]
    """A recipe's name (`mixmo recipes` lists them), or a YAML file."""
    out: FilePath | None = None
    """The output folder; preview/RECIPE by default."""
    overwrite: Overwrite = False


COMMAND = Command(
    "preview", "Draw the inputs of a network in training with a recipe, and every kind of mask.", (Options,), True
)


def run(arguments: list[str]) -> None:
    """Run ``mixmo preview RECIPE [--name value …] [--out FOLDER] [--overwrite]``."""
    (chosen,), settings = COMMAND.parse(arguments)
    plan, name = make_plan(load_recipe(chosen.recipe), settings), Path(chosen.recipe).stem
    for file in preview(plan, name, Path(chosen.out or f"preview/{name}"), chosen.overwrite):
        print(printable(str(file)))
