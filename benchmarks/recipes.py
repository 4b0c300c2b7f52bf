"""Run shipped recipes once each, and record time, peak memory and test accuracy.

    python benchmarks/recipes.py quickstart digits-cut --out rows
    python benchmarks/recipes.py finetune-folder --out rows --settings data.name=folder:PATH model.download=true
    python benchmarks/recipes.py finetune-folder --out rows --settings data.name=folder:PATH model.pretrained=WEIGHTS

Rows are appended to ``recipes.csv``; existing ones are not repeated. Each recipe is trained in a separate process, so
that peak memory (of the process, and of the GPU) is that of one run. Time covers training, validation and calibration,
without imports. ``OMP_NUM_THREADS`` sets the number of threads, which is recorded.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from study_plans import append, digest_of, has_row, read_rows

from mixmo import __version__
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.environment import environment
from mixmo.errors import InputError
from mixmo.evaluation.results import evaluate_runs
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

KEYS = ("recipe", "device")
PLACES = ("data.name", "data.root", "data.download", "model.download", "model.pretrained")
"""Settings that locate data and weights, and are left out of the digest. No recipe sets its own weights."""


def run_recipe(name: str, settings: list[str]) -> dict[str, Any]:
    """Train and test a recipe, and return its row."""
    with tempfile.TemporaryDirectory() as place:
        run, start = RunFolder(Path(place) / "run"), time.perf_counter()
        plan = make_plan(load_recipe(name), settings)
        fit(plan, run)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
        gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0
        metrics, known = evaluate_runs([run]).metrics.average, run.about()
    return {
        "data": Path(plan.settings.data.name).name,
        "images": known["data"]["images"],
        "epochs": plan.epochs,
        "seconds": round(seconds, 1),
        "memory_mib": round(peak),
        "gpu_memory_mib": round(gpu),
        "accuracy": f"{metrics['accuracy']:.6g}",
        "nll": f"{metrics['nll']:.6g}",
        "threads": torch.get_num_threads(),
        "precision": known["resolved"]["trainer"]["precision"],
        "mixmo": __version__,
        "torch": torch.__version__,
    }


def main() -> None:
    """Run the recipes that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="the folder of recipes.csv")
    parser.add_argument("--settings", nargs="*", default=[], help="such as data.name=folder:PATH, for all of them")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file, words = given.out / "recipes.csv", [f"--{each}" for each in given.settings]
    known = environment()
    device = known["gpu"] or known["processor"]
    for name in given.recipes:
        digest = digest_of(
            [load_recipe(name)], *(each for each in given.settings if each.partition("=")[0] not in PLACES)
        )
        about = {"recipe": name, "device": device, "digest": digest}
        if has_row(read_rows(file), about, KEYS, file):
            continue
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            row = about | pool.submit(run_recipe, name, words).result()
        append(file, row, KEYS)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
