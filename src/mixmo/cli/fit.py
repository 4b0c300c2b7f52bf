"""``mixmo fit``: train a recipe, or resume a run."""

from __future__ import annotations

from pathlib import Path

from mixmo.cli.options import Command, Word
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.errors import InputError, StoppedError
from mixmo.escaping import printable
from mixmo.launching import is_first
from mixmo.library import train_plan
from mixmo.releases import unpack_release
from mixmo.runs import RunFolder
from mixmo.validation import Boolean, Place, settings_class


@settings_class()
class Options:
    """What is trained, and where."""

    recipe: Word[str]
    """A recipe's name (`mixmo recipes` lists them), a YAML file, or the folder of a run to resume."""
    run: Place | None = None
    """The run's folder; runs/NAME of the recipe by default."""
    accept_changes: Boolean = False
    """Resume a run with settings that have changed."""
    released: Boolean = False
    """Take the trained run of this recipe that comes with mixmo (digits-cut) instead of training."""


COMMAND = Command("fit", "Train a recipe, or resume a run.", (Options,), True)


def run(words: list[str]) -> None:
    """``mixmo fit RECIPE [--name value …]`` or ``mixmo fit RUN``."""
    (own,), settings = COMMAND.read(words)
    target = own.recipe
    if own.released:
        if settings:
            raise InputError(f"--released takes a run as it was trained; leave out --{next(iter(settings))}.")
        folder = Path(own.run or f"runs/{target}")
        unpack_release(target, folder)
        print(
            f"{folder} holds a trained run; try `mixmo predict {folder} {folder}/digit.png` or `mixmo test {folder}`."
        )
        return
    if resume := Path(target).is_dir():
        if own.run:
            new = f"mixmo fit {target}/config.yaml"
            raise InputError(f"{target} is a run's folder; --run is for new runs, as in `{new}`.")
        run = RunFolder(target).require()
        plan = make_plan(run.resumed_config(), settings)
    else:
        recipe = load_recipe(target)
        if own.accept_changes:
            raise InputError(f"--accept_changes is for a run's folder, which is resumed; {target} is a recipe.")
        plan = make_plan(recipe, settings)
        run = RunFolder(own.run or f"runs/{Path(target).stem}")
    first = is_first()
    try:
        trained = train_plan(plan, run, resume, accept_changes=own.accept_changes)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
        raise StoppedError(f"stopped; `mixmo fit {run.path}` resumes it from the last finished epoch.") from None
    if first:
        path = printable(str(run.path))
        print(f"{path} is {'trained' if trained else 'finished'}; `mixmo test {path}` evaluates it.")
