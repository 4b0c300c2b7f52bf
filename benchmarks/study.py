"""Train every method of a study on every task with every seed; append a row of a CSV file for each.

    python benchmarks/study.py benchmarks/studies/digits-tuned.yaml --out rows [--jobs 2] [--data NAME=folder:…]

A study is a YAML file with ``settings`` of every run, ``tasks``, ``methods`` and ``seeds``. Tasks and methods contain
settings like a recipe (``extends`` included). A task also sets ``passes``, how often training sees each image (b ×
epochs, the same training compute for every method), and optionally its ``methods``, by default all. A method may set
``networks``, the number of networks that are trained and averaged; ``passes``, the share of the task's passes that each
of them gets; ``start``, the method whose network it starts from (``model.pretrained``), which is trained first; and
``other_seed``, to draw weights and batches from another seed on the same images. ``evaluate``, in the study or a task,
holds non-default ``EvaluationOptions``; corruptions and out-of-distribution datasets add columns.

``tuning`` describes how each method's settings are chosen before its rows are made (:mod:`tuning`). These rows record
the chosen settings, and exclude the images used for tuning from the test images.

A seed determines the training images (``data.split_seed``), the weights and the draws; further networks of an ensemble
see the same images. A study can be stopped at any time: existing rows are not repeated, and interrupted runs are
resumed. Rows are of the last epoch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Container, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from study_metrics import as_cells, metrics_of
from study_plans import append, digest_of, folder_of, has_row, name_row, plans_of, read_rows, stop_with
from tuning import choose, leave_out_images, tuned

from mixmo import __version__
from mixmo.config.plan import Plan
from mixmo.errors import InputError, TrainingError
from mixmo.evaluation.costs import network_size, training_images
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import predict
from mixmo.evaluation.results import EvaluationOptions, evaluate_runs
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

KEYS = ("task", "method", "seed")


@dataclass(frozen=True)
class Row:
    """A row to make: the runs whose logits are averaged, and the columns known in advance.

    Attributes:
        about: Task, method, seed and the settings in which tasks differ.
        plans: Plans of the networks.
        starts: Plans of the networks that they start from.
        options: How the row is evaluated.
        avoided: The plan whose training images were used for tuning, and are excluded from the test images.
    """

    about: dict[str, Any]
    plans: list[Plan]
    starts: list[Plan]
    options: EvaluationOptions
    avoided: Plan | None = None

    def networks(self, scratch: Path) -> dict[Path, Plan]:
        """Return the plans of all networks to train for the row, by folder."""
        return {folder_of(plan, scratch): plan for plan in (*self.starts, *self.plans)}


def rows_of(study: Mapping[str, Any], scratch: Path, names: Mapping[str, str]) -> Iterator[Row]:
    """Yield all rows of a study, seed by seed.

    Args:
        study: The content of its file.
        scratch: Folder of the trained networks.
        names: Replacements for dataset names.
    """
    common, methods = study.get("settings", {}), study["methods"]
    for seed in study["seeds"]:
        for task, on_task in study["tasks"].items():
            for method in on_task.get("methods", methods):
                own, starts, folder = methods[method], list[Plan](), ""
                parts = [common, on_task, own]
                if "start" in own:
                    parts.append(methods[own["start"]])
                    starts = list(plans_of([common, on_task, methods[own["start"]]], seed, names))
                    folder = str(folder_of(starts[0], scratch))
                plans = list(plans_of([common, on_task, own], seed, names, folder))
                about = {"task": task, "method": method, "seed": seed, "passes": on_task["passes"]}
                about |= {"digest": digest_of(parts, seed)}
                avoided = None
                if tuning := study.get("tuning"):
                    avoided = next(plans_of([common, on_task, own], tuning["seed"], names, folder))
                    about |= {"trials": tuning["trials"]}
                evaluate = study.get("evaluate", {}) | on_task.get("evaluate", {})
                ood = [names.get(name, name) for name in evaluate.get("ood", [])]
                yield Row(about, plans, starts, EvaluationOptions(**evaluate | {"ood": ood}), avoided)


def can_start(plan: Plan, missing: Container[Path]) -> bool:
    """Return whether a network does not start from one that is still to be trained."""
    pretrained = plan.settings.model.pretrained
    return isinstance(pretrained, bool) or Path(pretrained) not in missing


def train(plan: Plan, folder: Path) -> None:
    """Train a network, or resume it, and cache its predictions."""
    run = RunFolder(folder)
    fit(plan, run, resume=run.config_file.is_file())
    predict(TrainedRun(run))


def evaluate_row(row: Row, scratch: Path) -> dict[str, Any]:
    """Return the row with its metrics and costs; its networks must be trained."""
    trained = [TrainedRun(RunFolder(folder_of(plan, scratch))) for plan in row.plans]
    if row.avoided is not None:
        for each in trained:
            leave_out_images(each.data, row.avoided)
    found = evaluate_runs(trained, row.options)
    starts = [RunFolder(folder_of(plan, scratch)) for plan in row.starts]
    histories = [run.read_metrics() for run in (*starts, *(each.folder for each in trained))]
    settings, hardware = row.plans[0].settings, trained[0].folder.about()
    place = Path(settings.data.name.partition(":")[2] or settings.data.name)
    return row.about | {
        "dataset": place.parent.name if place.suffix == ".csv" else place.name,
        "images_per_class": settings.data.images_per_class,
        "size": settings.data.image_size,
        "backbone": settings.model.backbone,
        "input_repetition": settings.data.input_repetition,
        **(
            {"base_lr": settings.optimizer.base_lr, "weight_decay": settings.optimizer.weight_decay}
            if row.avoided
            else {}
        ),
        **as_cells(metrics_of(found, settings.data.validation > 0)),
        "test_images": len(found.predictions.targets),
        **{key: sum(network_size(each)[key] for each in trained) for key in ("parameters", "macs")},
        "images_in_training": sum(training_images(settings, rows) for rows in histories),
        "seconds": round(sum(each["seconds"] for rows in histories for each in rows)),
        "precision": row.plans[0].settings.trainer.precision,
        "device": hardware["gpu"] or hardware["processor"],
        "mixmo": __version__,
        "torch": torch.__version__,
    }


def make_rows(waiting: list[Row], out: Path, scratch: Path, jobs: int) -> None:
    """Train the networks of the rows; evaluate and append each row as soon as its networks are trained.

    Rows with a network that diverges are skipped.
    """
    networks = {folder: plan for row in waiting for folder, plan in row.networks(scratch).items()}
    print(f"{len(waiting)} rows to make, of {len(networks)} networks.", flush=True)
    context, missing = multiprocessing.get_context("spawn"), set(networks)
    training: dict[Future[None], Path] = {}
    evaluating: set[Future[dict[str, Any]]] = set()
    with ProcessPoolExecutor(jobs, context, initializer=stop_with, initargs=(os.getpid(),)) as pool:
        while waiting or training or evaluating:
            while len(training) + len(evaluating) < jobs:
                if row := next((row for row in waiting if missing.isdisjoint(row.networks(scratch))), None):
                    waiting.remove(row)
                    evaluating.add(pool.submit(evaluate_row, row, scratch))
                elif folder := next((each for each in networks if can_start(networks[each], missing)), None):
                    training[pool.submit(train, networks.pop(folder), folder)] = folder
                else:
                    break
            ended, _ = wait([*training, *evaluating], return_when=FIRST_COMPLETED)
            for future in ended & training.keys():
                folder = training.pop(future)
                try:
                    future.result()
                    missing.remove(folder)
                except TrainingError as error:
                    lost = [row for row in waiting if folder in row.networks(scratch)]
                    waiting = [row for row in waiting if row not in lost]
                    needed = {each for row in waiting for each in row.networks(scratch)}
                    networks = {each: plan for each, plan in networks.items() if each in needed}
                    for row in lost:
                        print(f"No row for {name_row(row.about, KEYS)}: {error}", flush=True)
            for future in ended & evaluating:
                evaluating.remove(future)
                append(out, found := future.result(), KEYS)
                shown = {key: found[key] for key in (*KEYS, "accuracy", "nll", "brier", "ece", "seconds")}
                print(f"{len(waiting) + len(evaluating)} to go: {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder of the CSV files, one for each study")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="networks trained at a time, a thread each")
    parser.add_argument(
        "--scratch", type=Path, default=Path("runs/study"), help="where networks are kept; empty it when code changes"
    )
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=OTHER", help="other names of datasets")
    parser.add_argument("--seeds", type=int, nargs="*", help="in place of the study's")
    parser.add_argument("--tasks", nargs="*", help="only these, of the studies that have them")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that train
    torch.set_num_threads(1)
    names = dict(word.split("=", 1) for word in given.data)
    for folder in (given.out, given.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    for file in given.studies:
        study, out = yaml.safe_load(file.read_text()), given.out / f"{file.stem}.csv"
        study["seeds"] = given.seeds or study["seeds"]
        study["tasks"] = {name: study["tasks"][name] for name in study["tasks"] if name in (given.tasks or [name])}
        for part in parts_of(study, file.stem, given, names) if "tuning" in study else [study]:
            known = read_rows(out)
            waiting = [row for row in rows_of(part, given.scratch, names) if not has_row(known, row.about, KEYS, out)]
            make_rows(waiting, out, given.scratch, given.jobs)


def parts_of(
    study: Mapping[str, Any], name: str, given: argparse.Namespace, names: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Yield one study per task and method, with its chosen settings, so that first results come early."""
    for task, on_task in study["tasks"].items():
        for method in on_task.get("methods", study["methods"]):
            own = study["methods"][method]
            if "start" in own:
                raise InputError(f"{method} starts from another method's network; such methods are not tuned.")
            parts = [study.get("settings", {}), on_task, own]
            chosen = choose(study["tuning"], parts, (task, method), given.out / name, given.scratch, given.jobs, names)
            alone = {**on_task, "methods": [method]}
            yield {**study, "tasks": {task: alone}, "methods": {method: tuned(own, chosen)}}


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
