"""``mixmo fit``: train a recipe, or resume a run."""

from __future__ import annotations

from pathlib import Path

from mixmo.cli.options import Command, Positional
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.errors import InputError, StoppedError
from mixmo.escaping import printable
from mixmo.launching import is_first
from mixmo.releases import unpack_release
from mixmo.runs import RunFolder
from mixmo.validation import Boolean, FilePath, settings_class


@settings_class()
class Options:
    """The recipe or run, and the output."""

    recipe: Positional[str]
    """A recipe's name (`mixmo recipes` lists them), a YAML file, or the folder of a run to resume."""
    run: FilePath | None = None
    """The run's folder; runs/RECIPE by default."""
    accept_changes: Boolean = False
    """Resume a run although settings have changed."""
    released: Boolean = False
    """Unpack the recipe's trained run that mixmo includes (digits-cut) instead of training."""


COMMAND = Command("fit", "Train a recipe, or resume a run.", (Options,), True)


def run(arguments: list[str]) -> None:
    """Run ``mixmo fit RECIPE [--name value …]`` or ``mixmo fit RUN``."""
    (chosen,), settings = COMMAND.parse(arguments)
    target = chosen.recipe
    if chosen.released:
        if settings:
            raise InputError(f"--released unpacks a run that is already trained; leave out --{next(iter(settings))}.")
        folder = Path(chosen.run or f"runs/{target}")
        unpack_release(target, folder)
        print(f"{folder} is a trained run; try `mixmo predict {folder} {folder}/digit.png` or `mixmo test {folder}`.")
        return
    if resume := Path(target).is_dir():
        if chosen.run:
            new = f"mixmo fit {target}/config.yaml"
            raise InputError(f"{target} is a run's folder; --run is for new runs, as in `{new}`.")
        run = RunFolder(target).require()
        plan = make_plan(run.resumed_config(), settings)
    else:
        recipe = load_recipe(target)
        if chosen.accept_changes:
            raise InputError(f"--accept_changes is for a run's folder; {target} is a recipe.")
        plan = make_plan(recipe, settings)
        run = RunFolder(chosen.run or f"runs/{Path(target).stem}")
    from mixmo.library import train_plan  # takes seconds, which help and wrong options need not wait for

    first = is_first()
    try:
        trained = train_plan(plan, run, resume, accept_changes=chosen.accept_changes)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns interrupts into exits
        raise StoppedError(f"stopped; {run.how_to_resume} from the last finished epoch.") from None
    if first:
        path = printable(str(run.path))
        print(f"{path} is {'trained' if trained else 'finished'}; `mixmo test {path}` evaluates it.")
