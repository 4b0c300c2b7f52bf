"""``mixmo fit``: train a recipe, or resume a run."""

from __future__ import annotations

from pathlib import Path

from mixmo.cli.options import take_flag
from mixmo.config.plan import make_plan, print_help
from mixmo.config.recipes import load_recipe
from mixmo.errors import InputError, StoppedError
from mixmo.evaluation.calibration import calibrate_run
from mixmo.launching import is_first
from mixmo.names import printable
from mixmo.runs import Run
from mixmo.training.changes import check_unchanged
from mixmo.training.fit import fit

ACCEPT = "accept_changes"
"""The option that resumes a run with settings that have changed."""


def run(words: list[str]) -> None:
    """``mixmo fit RECIPE [--key value …]`` or ``mixmo fit RUN``."""
    if {"-h", "--help"} & set(words):
        print_help("fit")
        return
    if not words or words[0].startswith("-"):
        raise InputError("fit needs a recipe's name, a YAML file or a run's folder; `mixmo recipes` lists the recipes.")
    target = words[0]
    accept, overrides = take_flag(ACCEPT, words[1:], "fit")
    if resume := Path(target).is_dir():
        run = Run(target).require()
        plan = make_plan(run.resumed_config(), overrides)
        if plan.folder:
            raise InputError(
                f"{target} is a run's folder; --run is for new runs, as of `mixmo fit {target}/config.yaml`."
            )
    else:
        recipe = load_recipe(target)
        if accept:
            raise InputError(f"--{ACCEPT} is for a run's folder, which is resumed; {target} is a recipe.")
        plan = make_plan(recipe, overrides)
        run = Run(plan.folder or f"runs/{Path(target).stem}")
    first = is_first()
    finished = resume and run.finished_epochs() == plan.trainer["max_epochs"]
    if finished and overrides and not accept:
        check_unchanged(run, plan)
    try:
        if not finished:
            fit(plan, run, resume, accept_changes=accept)
        if not first:
            return
        calibrate_run(run, plan.settings)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
        raise StoppedError(f"stopped; `mixmo fit {run.path}` resumes it from the last finished epoch.") from None
    path = printable(str(run.path))
    print(f"{path} is {'finished' if finished else 'trained'}; `mixmo test {path}` evaluates it.")
