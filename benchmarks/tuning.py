"""Choose the settings of a study's methods from equally many trials, by cross-validation on the training images.

``tuning`` in a study:

    tuning:
      trials: 6      # of every method on every task; the first is the study's own settings
      seed: 0        # of the draws, and of the training images used for tuning (data.split_seed)
      folds: 2       # each training image is validated once
      space: {optimizer.base_lr: {low: 0.03, high: 0.3}, data.padding: [0, 2]}   # log-uniform, or one of a list
      members: {data.input_repetition: [0.0, 0.5]}                               # of methods with members only

All methods draw the same values. A trial trains on all folds but one, for the task's number of passes, and predicts the
remaining fold; test images are never opened. The trial with the lowest mean NLL at the best temperature is chosen:
accuracies on so few images often tie, a plain NLL would select for confidence that temperature scaling corrects, and
scaled NLL is also what is reported on the test images. The temperature is fitted on the same fold, as a single number:
half a fold has too few errors. The choice does not depend on the seed: the chosen settings train on all training images
of every seed, and the images used for tuning are excluded from all test sets.

``STUDY.trials.csv`` has a row for each trial and fold, ``STUDY.chosen.csv`` one for each task and method. A trial that
diverges has a row without scores, and is not chosen.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn.model_selection import StratifiedKFold
from study_metrics import as_cells
from study_plans import Rows, append, digest_of, folder_of, has_row, plans_of, read_rows, stop_with
from torch import Tensor

from mixmo.config.plan import Plan, make_plan
from mixmo.data.given import GIVEN
from mixmo.data.module import DataModule
from mixmo.errors import InputError, TrainingError
from mixmo.evaluation.evaluate import basic_metrics
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import join_predictions, predict
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.temperature import fit_temperature
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

SCORE = "validation_nll_scaled"
TRIAL, CHOICE = ("task", "method", "trial", "fold"), ("task", "method")
"""The columns that identify a row."""
Settings = dict[str, Any]
"""By their dotted names."""


def draw_trials(tuning: Mapping[str, Any], with_members: bool) -> list[Settings]:
    """Draw the settings of each trial; the first has the study's own.

    Args:
        tuning: The study's section.
        with_members: Whether the method uses the settings of ``members``, which are drawn in any case.

    Example:
        >>> tuning = {"trials": 3, "seed": 0, "space": {"a": {"low": 0.1, "high": 1}}, "members": {"b": [1, 2]}}
        >>> [[*trial] for trial in draw_trials(tuning, True)]
        [[], ['a', 'b'], ['a', 'b']]
        >>> [trial["a"] for trial in draw_trials(tuning, False)[1:]]   # the same for all methods
        [0.433, 0.11]
    """
    generator = np.random.default_rng(tuning["seed"])
    space, members = tuning["space"], tuning.get("members", {})
    trials = [Settings()]
    for _ in range(tuning["trials"] - 1):
        drawn = {key: _draw(generator, values) for key, values in (space | members).items()}
        trials.append({key: value for key, value in drawn.items() if with_members or key in space})
    return trials


def _draw(generator: np.random.Generator, values: Sequence[Any] | Mapping[str, float]) -> Any:
    place = generator.random()
    if isinstance(values, Mapping):
        return float(f"{values['low'] * (values['high'] / values['low']) ** place:.3g}")
    return values[int(place * len(values))]


def tuned(method: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return a method with some settings replaced.

    Example:
        >>> tuned({"data": {"padding": 2}}, {"data.flip": True, "optimizer.base_lr": 0.1})
        {'data': {'padding': 2, 'flip': True}, 'optimizer': {'base_lr': 0.1}}
    """
    found = copy.deepcopy(dict(method))
    for name, value in settings.items():
        section, key = name.split(".")
        found.setdefault(section, {})[key] = value
    return found


def fold_of(plan: Plan, fold: int, folds: int) -> tuple[Plan, DataModule]:
    """Return a plan and its images for a fold: the other folds to train on, and this one as test images.

    Args:
        plan: The plan of a network on all training images.
        fold: Number of the fold, from 0.
        folds: Number of folds.

    Raises:
        InputError: if there are too few images of a class to divide.
    """
    source = DataModule(plan.settings.data, plan.settings.seed).source("train")
    counts = np.bincount(source.labels)
    if not 2 <= folds <= counts[counts > 0].min():
        raise InputError(
            f"tuning.folds is {folds}, which leaves no images to validate on: the training images have "
            f"{counts[counts > 0].min()} of the rarest class; take 2 folds or more, and no more than that."
        )
    cut = StratifiedKFold(folds, shuffle=True, random_state=plan.settings.data.split_seed)
    rest, held_out = list(cut.split(np.zeros(len(source)), source.labels))[fold]
    recipe = yaml.safe_load(plan.yaml)
    recipe["data"] |= {"name": GIVEN, "images_per_class": None, "validation": 0.0}
    own = make_plan(recipe)
    given = {"train": source.subset(rest), "test": source.subset(held_out)}
    return own, DataModule(own.settings.data, own.settings.seed, check=True, given=given)


def leave_out_images(data: DataModule, plan: Plan) -> None:
    """Exclude the training images of a plan, which were used for tuning, from the test images."""
    images = DataModule(plan.settings.data, plan.settings.seed).source("train")
    data.leave_out({images.name(index) for index in range(len(images))})


def validate(plans: list[Plan], fold: int, folds: int, scratch: Path) -> dict[str, str]:
    """Train networks on all folds but one, and return metrics of their average on that fold.

    Args:
        plans: Plans of the networks.
        fold: Number of the fold, from 0.
        folds: Number of folds.
        scratch: Folder of the trained networks.
    """
    predictions = []
    for plan in plans:
        own, data = fold_of(plan, fold, folds)
        name = hashlib.sha256(f"{folder_of(plan, scratch).name} {fold} of {folds}".encode()).hexdigest()[:16]
        run = RunFolder(scratch / name)
        try:
            fit(own, run, resume=run.config_file.is_file(), data=data)
        except TrainingError as error:
            print(f"A trial diverged: {error}", flush=True)
            return scores_of(torch.full((len(data.test), 1), math.nan), data.test.labels, len(data.train))
        predictions.append(predict(TrainedRun(run, data=data)))
    found = join_predictions(predictions, [str(plan.settings.seed) for plan in plans])
    return scores_of(mean_logits(found.logits), found.targets, len(data.train))


def scores_of(average: Tensor, targets: Tensor, training_images: int) -> dict[str, str]:
    """Return a fold's columns in the file of trials.

    Args:
        average: (N, K) logits averaged over the members, not finite if training diverged.
        targets: (N,) class numbers.
        training_images: Number of training images.
    """
    values = dict.fromkeys(("accuracy", "nll", "nll_scaled"), math.nan)
    if average.isfinite().all():
        scaled = basic_metrics(average / fit_temperature(average, targets), targets)
        values = basic_metrics(average, targets) | {"nll_scaled": scaled["nll"]}
    about = {"training_images": str(training_images), "validation_images": str(len(targets))}
    return about | as_cells({f"validation_{key}": values[key] for key in ("accuracy", "nll", "nll_scaled")})


def choose(
    tuning: Mapping[str, Any], parts: list[dict[str, Any]], keys: tuple[str, str], out: Path, scratch: Path,
    jobs: int, names: Mapping[str, str], trained: Callable[[list[Plan], int, int, Path], dict[str, str]] = validate,
) -> Settings:  # fmt: skip
    """Run the missing trials of a method on a task, and return the chosen settings.

    Args:
        tuning: The study's section.
        parts: The study's settings, the task and the method.
        keys: The names of task and method.
        out: Path of the study's CSV file, without its suffix.
        scratch: Folder of the trained networks.
        jobs: Number of networks trained at a time.
        names: Replacements for dataset names.
        trained: Trains and validates a trial on a fold.
    """
    files = {kind: out.with_name(f"{out.name}.{kind}.csv") for kind in ("trials", "chosen")}
    about = dict(zip(CHOICE, keys, strict=True))
    common, on_task, method = parts
    members = next(plans_of(parts, tuning["seed"], names)).settings.model.num_members
    drawn = draw_trials(tuning, members > 1)
    trials = [[common, on_task, tuned(method, settings)] for settings in drawn]
    digests = [digest_of(trial, tuning["seed"], tuning["folds"]) for trial in trials]
    rows, waiting = read_rows(files["trials"]), list[dict[str, Any]]()
    for trial, fold in np.ndindex(len(trials), tuning["folds"]):
        place = {**about, "trial": trial, "fold": fold, "digest": digests[trial], "settings": json.dumps(drawn[trial])}
        if not has_row(rows, place, TRIAL, files["trials"]):
            waiting.append(place)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=stop_with, initargs=(os.getpid(),)) as pool:
        running = {}
        for place in waiting:
            plans = list(plans_of(trials[place["trial"]], tuning["seed"], names))
            running[pool.submit(trained, plans, place["fold"], tuning["folds"], scratch)] = place
        for future in as_completed(running):
            append(files["trials"], running[future] | future.result(), TRIAL)
    known = [row for row in read_rows(files["trials"]) if (row["task"], row["method"]) == keys]
    score, best = best_trial([row for row in known if row["digest"] in digests])
    row = {"trial": best, "digest": digests[best], "settings": json.dumps(drawn[best]), "trials": len(trials)}
    choice = about | row | {SCORE: f"{score:.6g}"}
    if not has_row(read_rows(files["chosen"]), choice, CHOICE, files["chosen"]):
        append(files["chosen"], choice, CHOICE)
        print(f"Chosen: {choice}", flush=True)
    return drawn[best]


def best_trial(rows: Rows) -> tuple[float, int]:
    """Return the lowest mean score over folds, and its trial.

    Args:
        rows: Rows of one method on one task; trials that diverged have no score.

    Raises:
        InputError: if all trials diverged.

    Example:
        >>> best_trial([{"trial": trial, SCORE: score} for trial, score in (("0", "2"), ("0", ""), ("1", "2.5"))])
        (2.5, 1)
    """
    scores = dict[int, list[float]]()
    for row in rows:
        scores.setdefault(int(row["trial"]), []).append(float(row[SCORE] or math.nan))
    means = [(statistics.fmean(values), trial) for trial, values in scores.items() if not any(map(math.isnan, values))]
    if not means:
        names = ", ".join(rows[0].get(key, "") for key in CHOICE)
        raise InputError(f"All {len(scores)} trials of {names} diverged; lower the learning rates of tuning.space.")
    return min(means)
