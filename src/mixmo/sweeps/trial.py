"""One trial of a sweep: the same run that ``mixmo fit`` trains, with a report of each epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import Checkpoint

from mixmo.config.imports import PERMISSION
from mixmo.config.plan import Plan, flatten, make_plan
from mixmo.config.recipes import Recipe, merge
from mixmo.config.settings import neutral_settings
from mixmo.errors import InputError
from mixmo.evaluation.calibration import calibrate_run
from mixmo.evaluation.records import read_history
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

Row = dict[str, float]
"""An epoch's row of ``metrics.csv``."""
QUIET = {"trainer.enable_progress_bar": False}
Report = Callable[[Row], bool]
"""Takes an epoch's row, and returns whether the trial goes on."""


class Reports(Checkpoint):
    """Reports each epoch, and ends the training where it is told so.

    Lightning calls callbacks of checkpoints after all others and in their order, so that what is reported is kept.

    Args:
        run: Whose epochs they are.
        report: Takes them.
    """

    def __init__(self, run: RunFolder, report: Report) -> None:
        self.run, self.report = run, report

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the epoch."""
        if not self.report(read_history(self.run)[-1]):
            trainer.should_stop = True


def train_trial(recipe: Recipe, overrides: Mapping[str, Any], folder: Path, report: Report, wait: float = 0) -> bool:
    """Train a trial from where it is; its folder is then as ``mixmo fit`` leaves it.

    Args:
        recipe: Its settings.
        overrides: Values by their dotted names.
        folder: The run's folder, new or begun.
        report: Takes the row of each epoch, those that were trained earlier included.
        wait: How long another process may keep the folder, in seconds: one on a machine that was lost, say.

    Returns:
        Whether it was trained to its end.

    Raises:
        InputError: what :func:`mixmo.training.fit.fit` raises.
    """
    run = RunFolder(folder)
    begun = run.config_file.is_file()
    plan = make_plan(merge(recipe, run.resolved()) if begun else recipe, {**overrides, **QUIET})
    epochs = int(plan.trainer["max_epochs"])
    with run.locked(wait) if wait else nullcontext():
        done = run.finished_epochs()
    if not all([report(row) for row in read_history(run) if row["epoch"] <= done]):
        return done >= epochs
    if done < epochs:
        fit(plan, run, begun, [Reports(run, report)])
    if finished := run.finished_epochs() >= epochs:
        calibrate_run(run, plan.settings)
    return finished


def check_same(plan: Plan, run: RunFolder) -> None:
    """Refuse to take a run of other settings for a trial; those that depend on the machine may differ.

    Args:
        plan: The trial's.
        run: What is there.

    Raises:
        InputError: naming the first setting that differs.
    """
    free = neutral_settings() | {PERMISSION}
    wanted, found = (dict(flatten(each)) for each in (yaml.safe_load(plan.yaml), run.config()))
    for name in wanted:
        if name not in free and wanted[name] != found.get(name):
            raise InputError(
                f"{run.path} was trained with {name} {found.get(name)!r}, and the sweep asks for {wanted[name]!r}; "
                "choose another folder with --out, or change it back."
            )
