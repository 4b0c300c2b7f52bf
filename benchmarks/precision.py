"""Does bfloat16, or compiling, change what is learnt? Loss curves of a recipe over seeds, beside float32's.

    python benchmarks/precision.py --recipe cifar100-mini-cut --seeds 3 -- --trainer.max_epochs=4

Each way trains once for each seed; the table gives the mean over seeds, and their standard deviation below it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from mixmo.cli.benchmark import report
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.evaluation.results import evaluate_run
from mixmo.runs import Run
from mixmo.training.fit import fit

WAYS = {
    "float32": ["--trainer.precision=32-true", "--model.compile=false"],
    "bfloat16": ["--trainer.precision=bf16-mixed", "--model.compile=false"],
    "bfloat16, compiled": ["--trainer.precision=bf16-mixed", "--model.compile=true"],
}


def train(recipe: str, overrides: list[str]) -> dict[str, float]:
    """Return the training loss of each epoch and the test metrics in float32."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        fit(make_plan(load_recipe(recipe), overrides), run)
        losses = {f"loss, epoch {row['epoch']}": float(row["train_loss"]) for row in run.read_metrics()}
        metrics = evaluate_run(run)
    return losses | {"test top-1 %": 100 * metrics["accuracy"], "test NLL": metrics["nll"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cifar100-mini-cut")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--save", metavar="FILE", help="keep the results in a JSON file")
    parser.add_argument("overrides", nargs="*", help="settings of the recipe, after --")
    given = parser.parse_args()
    rows = {}
    for name, options in WAYS.items():
        runs = [train(given.recipe, [*given.overrides, *options, f"--seed={seed}"]) for seed in range(given.seeds)]
        rows[name] = {key: statistics.mean(each[key] for each in runs) for key in runs[0]}
        if given.seeds > 1:
            rows[f"{name} (sd)"] = {key: statistics.stdev(each[key] for each in runs) for key in runs[0]}
    about = {"recipe": given.recipe, "seeds": given.seeds, "overrides": " ".join(given.overrides)}
    report({"training by precision": rows}, about, given.save)


if __name__ == "__main__":
    main()
