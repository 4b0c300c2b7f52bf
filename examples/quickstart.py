"""Train one MixMo network and single networks on 20 digits of each class; say which is better, and how sure that is.

Run it by ``make quickstart``, or ``python examples/quickstart.py``. It takes about three minutes on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from mixmo.cli.main import notices
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.reporting.comparison_lead import lead_sentence
from mixmo.reporting.comparison_page import compare
from mixmo.reporting.comparison_tables import group_replicas, groups_table
from mixmo.reporting.glossary import METRICS
from mixmo.runs import Run
from mixmo.training.fit import fit

SHOWN = ("accuracy", "nll", "brier", "ece", "macs", "images")


def free_folder(name: str) -> Path:
    """Return the first folder of that name that does not exist yet: runs/NAME, runs/NAME-2 and so on."""
    names = [name, *(f"{name}-{number}" for number in range(2, 10_000))]
    return next(path for path in (Path("runs") / each for each in names) if not path.exists())


def train(recipe: str, overrides: list[str]) -> Path:
    """Train a recipe in a folder of its own and return the folder."""
    plan, folder = make_plan(load_recipe(recipe), overrides), free_folder(recipe)
    print(f"\nTraining {recipe} in {folder}", flush=True)
    fit(plan, Run(folder))
    return folder


def main(overrides: list[str]) -> None:
    """Train the networks, then show their metrics and costs in one table."""
    single = train("quickstart-single", overrides)
    cutmix = train("quickstart-single-cutmix", overrides)
    mixmo = train("quickstart", overrides)
    second = train("quickstart-single", [*overrides, "--seed=1"])
    out = free_folder("quickstart-comparison")
    groups = compare(
        [
            f"single network={single}", f"single network + CutMix={cutmix}", f"Cut-MixMo={mixmo}",
            f"two single networks={single}+{second}",
        ],
        out,
    )  # fmt: skip
    single_group, _, mixmo_group, _ = groups
    images = len(groups[0].entries[0].result.predictions.targets)
    table = groups_table(groups, {key: METRICS[key] for key in SHOWN}, f"20 digits of each class, {images} test images")
    print()
    Console(width=None if sys.stdout.isatty() else 120).print(table.rich())
    print(f"\n{lead_sentence([single_group, mixmo_group], group_replicas(groups))}")
    print(f"\nThe whole comparison: {out}/comparison.html. The trained network: {mixmo}")


if __name__ == "__main__":
    with notices():
        main(sys.argv[1:])
