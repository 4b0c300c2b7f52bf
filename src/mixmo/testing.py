"""``mixmo test``: judge a run on its test set."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from rich.console import Console
from rich.table import Table

from mixmo.batches import Augmentation
from mixmo.data import evaluation_loader, load_images
from mixmo.errors import one_of
from mixmo.evaluation import evaluate, predict_logits
from mixmo.hardware import PRECISIONS, training_device
from mixmo.plans import make_plan
from mixmo.runs import Run, load_checkpoint

COLUMNS = {
    "accuracy": ("top-1 %", 100, 2),
    "accuracy_top5": ("top-5 %", 100, 2),
    "nll": ("NLL", 1, 4),
    "brier": ("Brier", 1, 4),
    "ece": ("ECE %", 100, 2),
}
"""How the scores are shown: heading, factor, digits."""


def judge(run: Run, checkpoint: str = "last", precision: str = "32-true") -> dict[str, float]:
    """Judge a run's network on its test set: a table on screen, ``test.json`` in its folder.

    Args:
        run: The run's folder.
        checkpoint: ``last``, or ``best`` on the validation set.
        precision: ``32-true``, or ``bf16-mixed``, which is faster where the device has such units.

    Returns:
        The figures of :func:`mixmo.evaluate`.

    Raises:
        FileNotFoundError: if the run, the checkpoint or the dataset is missing.
        ValueError: if the checkpoint is damaged or of another network.
    """
    one_of(precision, PRECISIONS, "precision")
    net, epochs = load_checkpoint(run, checkpoint)
    settings, trainer, *_ = make_plan(run.config())
    images = load_images(settings.data, settings.seed)
    if len(images.classes) != net.num_classes:
        raise ValueError(
            f"{settings.data.name!r} has {len(images.classes)} classes, but {run.path} was trained on "
            f"{net.num_classes}."
        )
    device = training_device(trainer["accelerator"])
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = evaluation_loader(images.test, settings.data, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        logits, targets = predict_logits(net, batches, Augmentation(settings.data), device)
    figures = evaluate(logits, targets)
    about = {
        "run": str(run.path),
        "dataset": settings.data.name,
        "images": len(images.test),
        "checkpoint": checkpoint,
        "epochs": epochs,
        "precision": precision,
        "brier": "summed over classes",
        "ece": "15 equal bins, lo < confidence <= hi, top label",
    }
    file = run.write_json("test.json", {**figures, "about": about})
    title = f"{run.path.name}: {len(images.test)} test images, {checkpoint} checkpoint (epoch {epochs})"
    Console(width=None if sys.stdout.isatty() else 120).print(figures_table(figures, title))
    print(f"figures: {file}")
    return figures


def figures_table(figures: Mapping[str, float], title: str) -> Table:
    """Return the figures of :func:`mixmo.evaluate` as a table: the ensemble and every member, or the one network.

    Example:
        >>> figures = evaluate(torch.zeros(2, 2, 3), torch.tensor([0, 1]))
        >>> figures_table(figures, "two images").row_count
        4
    """
    table = Table(title=title)
    table.add_column("")
    for heading, _, _ in COLUMNS.values():
        table.add_column(heading, justify="right")
    members = sorted(key.partition("/")[0] for key in figures if key.startswith("member_") and key.endswith("/nll"))
    if len(members) == 1:
        add_figures(table, "single network", figures)
        return table
    add_figures(table, "ensemble, logit average", figures)
    add_figures(table, "ensemble, probability average", figures, "probability_average/")
    for member in members:
        add_figures(table, member.replace("_", " "), figures, f"{member}/")
    table.caption = f"diversity: d_re {figures['d_re']:.3f}, disagreement {100 * figures['disagreement']:.2f} %"
    return table


def add_figures(table: Table, label: str, figures: Mapping[str, float], prefix: str = "") -> None:
    """Add the row of the scores under ``prefix`` to a table of :func:`figures_table`."""
    table.add_row(label, *(f"{figures[prefix + key] * by:.{d}f}" for key, (_, by, d) in COLUMNS.items()))
