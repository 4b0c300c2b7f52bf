"""Train methods other than MixMo on a study's tasks: weight averages, cheap ensembles, two networks of different sizes.

    python benchmarks/methods.py benchmarks/studies/digits-tuned.yaml --out rows [--jobs 2] [--methods SWA single]

All methods share one plain PyTorch loop (:mod:`methods_training`) with the images, augmentation, batch size, precision
and number of passes (epochs × batch repetition) that the study's tasks set for ``single``; so rows are comparable to
those of ``study.py`` with the same task and seed. If the study has ``tuning``, each method's learning rate and weight
decay are chosen from the same draws, by folds of the training images only, and the images used for that are excluded
from the test images (:mod:`tuning`).

Rows are in ``STUDY.methods.csv``, trials in ``STUDY.methods.trials.csv``; existing ones are not repeated. A method that
needs a missing package, or does not fit the task, is skipped with a message.

Columns are those of ``study.py``: metrics are of the members' average logits, ``macs`` of all members' predictions, and
``nll_by_probabilities`` of the average of their probabilities. The weights of a duo's two networks are fitted on the
validation images, or otherwise for each half of the test images on the other half, as for ``nll_two_fold``; weights
have mean 1, so that they contain no temperature.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from methods_training import METHODS, SkippedError, Trained, first_images, macs_of
from study_metrics import OOD, as_cells, set_size_two_fold
from study_plans import append, digest_of, has_row, name_row, plans_of, read_rows, stop_with
from tuning import choose, fold_of, leave_out_images, scores_of, tuned

from mixmo import __version__, evaluate
from mixmo.config.hardware import training_device
from mixmo.config.plan import Plan
from mixmo.config.settings import Settings
from mixmo.data.batches import Augmentation
from mixmo.data.image_sets import ImageSet
from mixmo.data.module import DataModule
from mixmo.errors import InputError, MissingError
from mixmo.evaluation.predictions import Predictions
from mixmo.evaluation.results import ood_metrics
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.temperature import fit_weights

KEYS = ("task", "method", "seed")
BASE = {"extends": ["single"]}
"""The settings of every method, in place of those of a study's method."""
CHUNK = 256


@torch.no_grad()
def predict(trained: Trained, images: ImageSet, settings: Settings) -> Predictions:
    """Return the members' predictions for a set of images."""
    device = training_device(settings.trainer.accelerator)
    augment, images = Augmentation(settings.data), images.to(device)
    chunks = torch.arange(len(images), device=device).split(CHUNK)
    logits = torch.cat([trained.members(augment.center(images.images, index)).float().cpu() for index in chunks])
    return Predictions(logits, images.labels.cpu(), [str(number) for number in range(logits.shape[2])])


def predict_all(trained: Trained, data: DataModule, settings: Settings, ood: Sequence[str]) -> dict[str, Predictions]:
    """Return predictions of the test images, of the validation images if there are any, and of other datasets."""
    sets = {"test": data.test}
    if data.validation is not None:
        sets["validation"] = data.validation
    for name in ood:
        try:
            sets[name], _ = data.other(name)
        except MissingError as error:
            print(f"No out-of-distribution images: {error}", flush=True)
    found = {name: predict(trained, images, settings) for name, images in sets.items()}
    return weigh(found) if trained.weighted else found


def weigh(found: dict[str, Predictions]) -> dict[str, Predictions]:
    """Return the two members' predictions, weighted by weights fitted on validation images or on the other half."""
    if "validation" in found:
        weights = fit_weights(found["validation"].logits, found["validation"].targets)[:, None]
        return {name: replace(each, logits=each.logits * weights) for name, each in found.items()}
    test = found["test"]
    halves = [fit_weights(test.logits[1 - half :: 2], test.targets[1 - half :: 2])[:, None] for half in (0, 1)]
    logits = test.logits.clone()
    for half, weights in enumerate(halves):
        logits[half::2] *= weights
    mean = (halves[0] + halves[1]) / 2
    others = {name: replace(each, logits=each.logits * mean) for name, each in found.items()}
    return others | {"test": replace(test, logits=logits)}


def measure(trained: Trained, data: DataModule, settings: Settings, ood: Sequence[str]) -> dict[str, float]:
    """Return the metrics and costs of a trained method; NaN for those that the task does not define."""
    found = predict_all(trained, data, settings, ood)
    test = found["test"]
    flat = evaluate(test.logits, test.targets)
    scores = [ood_metrics(test, found[name])["max_probability"] for name in ood if name in found]
    device = training_device(settings.trainer.accelerator)
    return {
        **{key: flat[key] for key in ("accuracy", "nll", "brier", "ece", "aurc", "nll_two_fold", "ece_two_fold")},
        "nll_by_probabilities": flat["probability_average/nll"],
        "set_size_95_two_fold": set_size_two_fold(test, 0.95),
        **{key: statistics.fmean(each[name] for each in scores) if scores else math.nan for key, name in OOD.items()},
        "members": test.logits.shape[1],
        "parameters": trained.parameters,
        "macs": macs_of(trained.members, first_images(data, settings, 1).to(device)),
        "images_in_training": trained.images_seen,
    }


def make_row(about: Mapping[str, Any], plan: Plan, avoided: Plan | None, ood: Sequence[str]) -> dict[str, Any]:
    """Train and test a method, and return its row.

    Args:
        about: Task, method and seed.
        plan: The plan of ``single`` on the task, with the method's learning rate and weight decay.
        avoided: The plan whose training images were used for tuning, and are excluded from the test images.
        ood: Names of out-of-distribution datasets.
    """
    torch.set_num_threads(1)
    settings = plan.settings
    data = DataModule(settings.data, settings.seed, check=True)
    if avoided is not None:
        leave_out_images(data, avoided)
    start = time.perf_counter()
    trained = METHODS[about["method"]](data, settings, settings.seed)
    seconds = time.perf_counter() - start
    values = measure(trained, data, settings, ood)
    return {
        **about,
        "base_lr": settings.optimizer.base_lr,
        "weight_decay": settings.optimizer.weight_decay,
        **as_cells(values),
        "test_images": len(data.test),
        "seconds": f"{seconds:.1f}",
        "precision": settings.trainer.precision,
        "device": training_device(settings.trainer.accelerator).type,
        "mixmo": __version__,
        "torch": torch.__version__,
    }


def validate_method(method: str, plans: list[Plan], fold: int, folds: int, scratch: Path) -> dict[str, str]:
    """Return metrics of a method on a fold that it does not train on, like :func:`tuning.validate`; saves nothing."""
    torch.set_num_threads(1)
    own, data = fold_of(plans[0], fold, folds)
    trained = METHODS[method](data, own.settings, own.settings.seed)
    found = predict_all(trained, data, own.settings, [])["test"]
    return scores_of(mean_logits(found.logits), found.targets, len(data.train))


def add_rows(study: Mapping[str, Any], keys: tuple[str, str], given: argparse.Namespace, out: Path) -> None:
    """Tune a method on a task if necessary, and append its missing rows.

    Args:
        study: The content of its file.
        keys: The names of task and method.
        given: The command line.
        out: Path of the file of rows, without its suffix.
    """
    (task, method), names = keys, dict(word.split("=", 1) for word in given.data)
    file, parts = out.with_name(f"{out.name}.csv"), [study.get("settings", {}), study["tasks"][task], BASE]
    known = read_rows(file)
    tuning, avoided, trials = study.get("tuning"), None, 1
    if tuning:
        avoided = next(plans_of(parts, tuning["seed"], names))
        trials = given.trials or tuning["trials"]
        trained = partial(validate_method, method)
        if trials > 1:
            tuning = {**tuning, "trials": trials}
            parts[2] = tuned(BASE, choose(tuning, parts, keys, out, given.scratch, given.jobs, names, trained))
    waiting = list[dict[str, Any]]()
    for seed in given.seeds or study["seeds"]:
        about = {"task": task, "method": method, "seed": seed, "passes": study["tasks"][task]["passes"]}
        about |= {"digest": digest_of(parts, seed), "trials": trials}
        if not has_row(known, about, KEYS, file):
            waiting.append(about)
    context = multiprocessing.get_context("spawn")
    ood = [names.get(name, name) for name in study.get("evaluate", {}).get("ood", [])]
    with ProcessPoolExecutor(given.jobs, context, initializer=stop_with, initargs=(os.getpid(),)) as pool:
        running = {}
        for about in waiting:
            plan = next(plans_of(parts, about["seed"], names))
            running[pool.submit(make_row, about, plan, avoided, ood)] = about
        for future in as_completed(running):
            try:
                append(file, row := future.result(), KEYS)
            except InputError as error:  # of logits that are not finite, say
                print(f"No row for {name_row(running[future], KEYS)}: {error}", flush=True)
                continue
            print({key: row[key] for key in (*KEYS, "accuracy", "nll", "nll_two_fold", "seconds")}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder of the CSV files")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--tasks", nargs="*", help="only these, of every study")
    parser.add_argument("--seeds", type=int, nargs="*", help="in place of the study's")
    parser.add_argument("--trials", type=int, help="in place of the study's; 1 takes the study's own settings")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="networks trained at a time, a thread each")
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=OTHER", help="other names of datasets")
    given = parser.parse_args()
    given.scratch = given.out  # where nothing is kept
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that train
    given.out.mkdir(parents=True, exist_ok=True)
    for file in given.studies:
        study = yaml.safe_load(file.read_text())
        for task in given.tasks or study["tasks"]:
            for method in given.methods:
                try:
                    add_rows(study, (task, method), given, given.out / f"{file.stem}.methods")
                except SkippedError as reason:
                    print(f"{task}: {method} is left out: {reason}.", flush=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
