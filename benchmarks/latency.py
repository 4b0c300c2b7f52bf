"""Measure the prediction latency of a study's methods at batches of 1 and 64 images.

    python benchmarks/latency.py benchmarks/studies/digits-tuned.yaml --save rows/digits-tuned.latency.json

Covers all methods of ``study.py`` and ``methods.py`` on the study's first task, after one pass of training, since
weights do not affect latency. Batches are in float32, from images to logits of all members; MixMo networks are fused.
Methods are timed in interleaved rounds, and ratios are to ``single``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from methods import BASE
from methods_training import METHODS, SkippedError, first_images
from study_plans import plans_of
from torch import Tensor

from mixmo import fuse
from mixmo.config.hardware import training_device
from mixmo.config.plan import Plan
from mixmo.data.module import DataModule
from mixmo.evaluation.benchmark import summarise, take_turns, time_call
from mixmo.reporting.measurements import report
from mixmo.training.build import build_network

BATCHES = (1, 64)
Predict = Callable[[Tensor], Any]


def fused_predictor(plans: list[Plan], data: DataModule) -> Predict:
    """Return a function that predicts with the fused networks of a method of ``study.py``."""
    nets = [fuse(build_network(plan.settings, data).eval()).eval() for plan in plans]
    return lambda images: [net(images) for net in nets]


def find_predictors(study: dict[str, Any], names: dict[str, str]) -> tuple[dict[str, Predict], DataModule, Plan]:
    """Return the predictors of the first task by method, its images, and the plan of a single network."""
    common, on_task = study.get("settings", {}), next(iter(study["tasks"].values())) | {"passes": 1}
    plan = next(plans_of([common, on_task, BASE], 0, names))
    data = DataModule(plan.settings.data, plan.settings.seed, check=True)
    found = dict[str, Predict]()
    for name, own in study["methods"].items():
        if "start" not in own:
            plans = list(plans_of([common, on_task | {"passes": 4}, own], 0, names))
            found[name] = fused_predictor(plans, data)
    for name, train in METHODS.items():
        try:
            found.setdefault(name, train(data, plan.settings, 0).members)
        except SkippedError as reason:
            print(f"{name} is left out: {reason}.", flush=True)
    return found, data, plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=OTHER", help="other names of datasets")
    parser.add_argument("--save", metavar="FILE", help="keep the results in a JSON file")
    given = parser.parse_args()
    names = dict(word.split("=", 1) for word in given.data)
    found, data, plan = find_predictors(yaml.safe_load(given.study.read_text()), names)
    device, tables = training_device(plan.settings.trainer.accelerator), {}
    with torch.no_grad():
        for batch in BATCHES:
            images = first_images(data, plan.settings, batch).to(device)
            timers = {name: partial(time_call, partial(predict, images), device) for name, predict in found.items()}
            seconds = take_turns(timers, given.rounds)
            tables[f"batch {batch}"] = {
                name: summarise(taken, against=seconds["single"]) for name, taken in seconds.items()
            }
    about = {"study": given.study.name, "backbone": plan.settings.model.backbone, "device": str(device)}
    report(tables, about | {"threads": torch.get_num_threads()}, given.save)


if __name__ == "__main__":
    main()
