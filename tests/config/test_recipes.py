"""Shipped recipes: the published settings, and every one of them runs."""

import math
from pathlib import Path

import pytest
import timm
import torch
from conftest import write_images
from safetensors.torch import save_file

from mixmo.config.plan import make_plan
from mixmo.config.recipes import catalogue, combine_bases, load_recipe, method_name
from mixmo.errors import InputError
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.results_file import evaluate_run
from mixmo.masks import KINDS
from mixmo.runs import RunFolder
from mixmo.sweeps import load_sweep
from mixmo.training.fit import fit

MULTIPLE = ["mimo", "linear", "cut", "linear-cutmix", "cut-cutmix"]
CIFAR = ["single", "single-mixup", "single-cutmix", *MULTIPLE]
TINY = [f"tiny-preact18x{w}-{method}" for w in (1, 2, 3) for method in ("single", "linear", "cut")]
TINY += ["tiny-preact18x1-single-mixup", "tiny-preact18x1-single-cutmix"]
QUICKSTART = ["quickstart", "quickstart-single", "quickstart-single-cutmix"]
DIGITS = ["digits-cut", "digits-single"]
MINI = ["single", "mimo", "linear", "cut", "cut-cutmix"]


def test_every_published_configuration_is_there():
    wanted = {f"cifar{k}-wrn28x10-{method}" for k in (10, 100) for method in CIFAR}
    wanted |= {f"cifar{k}-wrn28x10-{method}-b2" for k in (10, 100) for method in MULTIPLE}
    wanted |= {*TINY, *(f"cifar100-mini-{method}" for method in MINI), *QUICKSTART, *DIGITS}
    assert wanted <= catalogue().keys()
    assert len(TINY) == 11


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("cifar100-wrn28x10-single", "81.79"), ("cifar100-wrn28x10-mimo", "82.92"),
        ("cifar100-wrn28x10-cut-cutmix", "85.77–85.92"), ("cifar10-wrn28x10-cut-cutmix", "97.83"),
        ("cifar10-wrn28x10-single-mixup", "97.07"), ("tiny-preact18x3-cut", "70.23"),
    ],
)  # fmt: skip
def test_published_figures_have_a_source(name, published):
    assert str(catalogue()[name]["published"]) == published
    assert all(recipe["source"] for recipe in catalogue().values() if "published" in recipe)
    assert not any("published" in recipe for key, recipe in catalogue().items() if "mini" in key or "-b2" in key)


@pytest.mark.parametrize("name", [n for n in catalogue() if n.startswith(("cifar10-wrn", "cifar100-wrn"))])
def test_published_settings_of_cifar(name):
    settings = make_plan(load_recipe(name)).settings
    single = "single" in name
    b = 1 if single else 2 if name.endswith("b2") else 4
    assert (settings.trainer.max_epochs, settings.data.batch_size, settings.data.batch_repetition) == (300, 64, b)
    assert settings.model.num_members == (1 if single else 2)
    assert settings.optimizer.peak_lr(b) == pytest.approx(0.1 / (2 * b))
    own = settings.optimizer
    assert (own.weight_decay, own.momentum, own.decay_all) == (6e-4, 0.9, True)
    assert (settings.mixer.alpha, settings.mixer.root, settings.mixer.probability) == (2, 3, 0.5)
    assert settings.data.validation == 0 and settings.data.input_repetition == 0 and settings.data.padding == 4
    assert settings.pixels.kind == ("mixup" if "mixup" in name else "cutmix" if "cutmix" in name else "none")
    assert (settings.pixels.alpha, settings.pixels.probability) == (1, 0.5)


@pytest.mark.parametrize("name", TINY)
def test_published_settings_of_tiny_imagenet(name):
    settings = make_plan(load_recipe(name)).settings
    b = 1 if "single" in name else 4
    assert (settings.trainer.max_epochs, settings.data.batch_size, settings.data.batch_repetition) == (1200, 100, b)
    assert settings.optimizer.peak_lr(b) == pytest.approx(0.2 / b)
    assert settings.optimizer.weight_decay == 1e-4
    assert (settings.data.mean, settings.data.std, settings.data.image_size) == ([0.5], [0.5], 64)


def test_families_at_equal_compute_are_equal():
    families = [[f"cifar100-mini-{method}" for method in MINI], QUICKSTART, DIGITS]
    families += [[f"finetune-folder{method}" for method in ("", "-single", "-single-cutmix")]]
    families += [[f"cifar100-fast-{net}-{m}" for m in ("single", "cut-cutmix")] for net in ("wrn16x8", "wrn28x10")]
    for family in families:
        plans = [make_plan(load_recipe(name)) for name in family]
        assert len({plan.epochs * plan.settings.data.batch_repetition for plan in plans}) == 1
        assert len({(plan.settings.model.backbone, plan.settings.data.batch_size) for plan in plans}) == 1
        assert len({plan.settings.data.images_per_class for plan in plans}) == 1


def test_the_quickstart_has_few_images():
    for name in QUICKSTART:
        own = make_plan(load_recipe(name)).settings.data
        assert (own.images_per_class, own.split_seed, own.validation) == (20, 0, 0)


GRIDS = sorted((Path(__file__).parents[2] / "examples" / "grids").glob("*.yaml"))


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_grids_are_of_equal_compute(file):
    sweep = load_sweep(file)
    plans = [trial.plan for trial in sweep]
    passes = {plan.epochs * plan.settings.data.batch_repetition for plan in plans}
    assert len(passes) == 1 and len({trial.name for trial in sweep}) >= 3
    if file.stem == "kind":
        assert {plan.settings.mixer.kind for plan in plans} == set(KINDS)


def test_the_papers_questions_have_grids():
    wanted = {"kind", "probability", "alpha", "root", "repetition", "members", "width", "where"}
    assert wanted == {file.stem for file in GRIDS}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder / "train", size=32)
    write_images(folder / "test", count=2, size=32, seed=1)
    return folder


WIDER = "cifar10-", "tiny-preact18x2", "tiny-preact18x3", "cifar100-fast-wrn28x10"
"""What these recipes have in place of another's is replaced: dataset and width."""


@pytest.mark.parametrize("name", [name for name in catalogue() if not name.startswith(WIDER)])
def test_recipe_runs(name, pictures, tmp_path, observed):
    """One epoch of two steps with the recipe's masks and precision, on a narrow version of its network."""
    recipe = load_recipe(name)
    backbone = recipe["model"]["backbone"]
    assert timm.is_model(backbone)
    narrow = "preact_resnet18_1" if backbone.startswith("preact") else "wide_resnet10_1"
    data = [] if recipe["data"]["name"] == "digits" else [f"--data.name=folder:{pictures}"]
    shrunk = ["--data.batch_size=8", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    shrunk += ["--model.compile=false"]  # test_speed.py compiles
    if recipe["model"].get("pretrained"):
        save_file(timm.create_model(narrow, num_classes=5).state_dict(), tmp_path / "weights.safetensors")
        data += [f"--model.pretrained={tmp_path}/weights.safetensors", "--data.crop_size=32"]
    shrunk += ["--mixer.probability=1", "--mixer.progress=steps"]  # so that a kind with a shape is drawn for sure
    plan = make_plan(recipe, [*data, *shrunk, f"--model.backbone={narrow}"])
    run = RunFolder(tmp_path / "run")
    fit(plan, run)
    assert observed.shaped == [recipe["mixer"]["kind"] == "cut"] * 2
    assert observed.types == {torch.bfloat16 if plan.settings.trainer.precision == "bf16-mixed" else torch.float32}
    assert math.isfinite(evaluate_run(TrainedRun(run)).flat()["nll"])


def test_dotted_names_are_settings_of_their_section():
    parts = [{"mixer.alpha": 3, "data": {"flip": False}}, {"mixer": {"alpha": 1}, "data.flip": True}]
    combined = combine_bases([{"extends": "digits-cut"}, *parts], "here")
    assert combined["mixer"]["alpha"] == 1 and combined["data"]["flip"] is True
    assert "mixer.alpha" not in combined
    for twice in ({"mixer": {"alpha": 1}, "mixer.alpha": 3}, {"mixer": "cut", "mixer.alpha": 3}):
        with pytest.raises(InputError, match=r"here sets mixer\.alpha both by this name and in its section"):
            combine_bases([twice], "here")


def test_methods_have_their_usual_names():
    assert {method_name(recipe) for recipe in catalogue().values()} == {
        "single network", "single network + mixup", "single network + CutMix", "MIMO", "Linear-MixMo", "Cut-MixMo",
        "Linear-MixMo + CutMix", "Cut-MixMo + CutMix",
    }  # fmt: skip


def test_a_file_may_extend_recipes(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("extends: [cifar100-wrn28x10-cut, b2]\nmixer: {alpha: 1.0}\n")
    settings = make_plan(load_recipe(file)).settings
    assert (settings.mixer.alpha, settings.mixer.kind, settings.data.batch_repetition) == (1.0, "cut", 2)
