"""``mixmo preview``: visualise augmented inputs and masks before training."""

from __future__ import annotations

from pathlib import Path

from mixmo.cli.options import Command, Overwrite, Word
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.escaping import printable
from mixmo.reporting.preview import preview
from mixmo.validation import Place, settings_class


@settings_class()
class Options:
    """What is drawn, and where."""

    recipe: Word[str]
    """A recipe's name, which `mixmo recipes` lists, or a YAML file."""
    out: Place | None = None
    """The folder to write into; preview/NAME of the recipe by default."""
    overwrite: Overwrite = False


COMMAND = Command(
    "preview", "Draw what a network sees in training with a recipe, and every kind of mask.", (Options,), True
)


def run(words: list[str]) -> None:
    """``mixmo preview RECIPE [--name value …] [--out FOLDER] [--overwrite]``."""
    (own,), settings = COMMAND.read(words)
    plan, name = make_plan(load_recipe(own.recipe), settings), Path(own.recipe).stem
    for file in preview(plan, name, Path(own.out or f"preview/{name}"), own.overwrite):
        print(printable(str(file)))
