"""The losses of 100 steps and of validation against those in ``tests/golden``, to detect changes of training.

If training is meant to change, regenerate them, and say why in the commit::

    RENEW_GOLDEN=1 python -m pytest tests/training/test_golden_curves.py
"""

import os
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback
from PIL import Image

from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS, EPOCHS, BATCH = 100, 5, 8

RECIPES = {
    "curve-mixmo": """
extends: digits-cut
model: {backbone: wide_resnet10_1, num_members: 2}
mixer: {kind: {cut: 0.5, fmix: 0.5}, probability: 0.5}
pixels: {kind: cutmix, probability: 0.5}
data: {batch_repetition: 2}
optimizer: {ema_decay: 0.99}
""",
    "curve-single": """
extends: digits-cut
model: {backbone: wide_resnet10_1, num_members: 1}
mixer: {kind: mimo}
data: {batch_repetition: 1}
schedule: {kind: cosine}
""",
}
"""Recipes on pictures of :func:`write_stripes`; one with shapes, mixing in pixels and EMA, one plain."""

COMMON = {
    "data": {
        "name": "folder:stripes", "batch_size": BATCH, "channels": 3, "image_size": None, "padding": 1, "flip": True,
        "validation": 0.2,
    },
    "optimizer": {"lr": 0.02},
    "schedule": {"warmup_steps": 10},
    "trainer": {"accelerator": "cpu", "precision": "32-true", "max_epochs": EPOCHS},
}  # fmt: skip


def write_stripes(folder, count):
    """Write ``count`` pictures of 12×12 of four classes: noisy stripes of four slopes."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:12, :12]
    for number in range(count):
        slope, phase = number % 4, rng.integers(6)
        wave = 128 + 80 * ((slope * y + (3 - slope) * x + phase) // 3 % 2) - 40
        pixels = (wave[..., None] + rng.integers(-40, 41, (12, 12, 3))).clip(0, 255).astype(np.uint8)
        (folder / f"class{slope}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"class{slope}" / f"{number:03}.png")


class Losses(Callback):
    """Records the loss of every step."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def curve(name, folder):
    """Return the losses (100,) of a recipe's steps and its validation NLL (5,) after each epoch, of the EMA if used."""
    (folder / "recipe.yaml").write_text(RECIPES[name])
    recipe = load_recipe(folder / "recipe.yaml")
    for section, values in COMMON.items():
        recipe[section] = recipe.get(section, {}) | values
    distinct = BATCH // recipe["data"]["batch_repetition"]
    write_stripes(folder / "stripes" / "train", STEPS // EPOCHS * distinct * 5 // 4)
    write_stripes(folder / "stripes" / "test", 4)
    losses, run = Losses(), RunFolder(folder / "run")
    fit(make_plan(recipe), run, callbacks=[losses])
    return np.array(losses.values), np.array([float(row["val_nll"]) for row in run.read_metrics()])


@pytest.mark.parametrize("name", RECIPES)
def test_the_losses_are_those_kept(name, tmp_path, monkeypatch):
    """The first 20 steps to 2e-3; later, since rounding differences between CPUs grow, means of epochs to 2 %."""
    monkeypatch.chdir(tmp_path)
    losses, validation = curve(name, tmp_path)
    assert len(losses) == STEPS and len(validation) == EPOCHS
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("RENEW_GOLDEN"):
        lines = [f"step {step} loss {loss:.6f}\n" for step, loss in enumerate(losses)]
        lines += [f"epoch {epoch} validation {loss:.6f}\n" for epoch, loss in enumerate(validation)]
        file.write_text("".join(lines))
    kept = np.loadtxt(file, usecols=3)
    epochs = [values[:STEPS].reshape(EPOCHS, -1).mean(1) for values in (losses, kept)]
    np.testing.assert_allclose(losses[:20], kept[:20], rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(*epochs, rtol=0.02, atol=0.01)
    np.testing.assert_allclose(validation, kept[STEPS:], rtol=0.02, atol=0.01)
    assert epochs[1][-1] < 0.8 * epochs[1][0]  # it learns, so that a wrong gradient shows too
