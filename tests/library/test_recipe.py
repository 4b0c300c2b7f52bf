"""``mixmo.fit`` with a recipe, whose settings arguments and keywords override."""

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import Dataset

import mixmo
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.errors import InputError
from mixmo.training.fit import fit

SHORT = {"epochs": 1, "limit_train_batches": 2, "progress": False}
IMAGES, LABELS = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 3), dtype=np.uint8), np.arange(120) % 3


class Prepared(Dataset):
    """Images prepared by its own transforms."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        if index >= 60:
            raise IndexError(index)
        return torch.randn(3, 8, 8), index % 3


def config(run):
    return run.folder.config()


def test_a_recipe_alone_is_the_commands_run(tmp_path):
    run = mixmo.fit(recipe="digits-cut", out=tmp_path / "called", **SHORT)
    words = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false"]
    typed = type(run.folder)(tmp_path / "typed")
    fit(make_plan(load_recipe("digits-cut"), words), typed)
    assert config(run) == typed.config()
    found, expected = (
        torch.load(each.checkpoint_file(), weights_only=True)["state_dict"] for each in (run.folder, typed)
    )
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_arguments_and_keywords_are_above_the_recipe(tmp_path):
    (tmp_path / "own.yaml").write_text("extends: digits-cut\nmixer: {kind: {cut: 0.5, cow: 0.5}}\nseed: 3\n")
    run = mixmo.fit("wide_resnet10_1", recipe=tmp_path / "own.yaml", num_members=3, batch_size=16,
                    mixer_kind={"linear": 1.0}, **SHORT)  # fmt: skip
    found = config(run)
    assert found["model"]["num_members"] == 3 == run.network.num_members and found["seed"] == 3
    assert found["mixer"]["kind"] == {"linear": 1.0} and found["mixer"]["alpha"] == 2.0
    assert found["data"]["batch_size"] == 16 and found["data"]["batch_repetition"] == 2


def test_ones_own_images_take_the_recipes_hyperparameters():
    """But not the recipe's selection or description of images."""
    own = {"mean": [0.5], "std": [0.5]}
    run = mixmo.fit("wide_resnet10_1", (IMAGES[:90], LABELS[:90]), val=(IMAGES[90:], LABELS[90:]), recipe="quickstart",
                    batch_size=12, **own, **SHORT)  # fmt: skip
    found = config(run)
    assert (
        found["data"]["name"] == "given" and found["data"]["channels"] == 3 and found["data"]["input_repetition"] == 0.5
    )
    assert found["data"]["images_per_class"] is None and run.folder.training_images() == 90
    assert found["optimizer"]["base_lr"] == 0.121 and "val_accuracy" in run.metrics[-1]
    prepared = config(
        mixmo.fit("wide_resnet10_1", Prepared(), recipe="cifar10-wrn28x10-cut-b2", batch_size=12, **SHORT)
    )
    assert prepared["data"]["mean"] == [0.0] and prepared["data"]["std"] == [1.0]
    again = config(mixmo.fit("wide_resnet10_1", Prepared(), recipe="digits-cut", batch_size=12, **SHORT))
    assert again["data"]["image_size"] is None and again["data"]["own_transforms"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "missing: model, train, epochs; give all of them, or recipe="),
        ({"model": "wide_resnet10_1", "train": "digits"}, "missing: epochs; give all of them, or recipe="),
        ({"recipe": "digits-cat"}, "unknown recipe 'digits-cat'"),
        ({"recipe": "nowhere.yaml"}, "nowhere.yaml"),
        ({"recipe": "digits-cut", "val": (IMAGES, LABELS)}, "val or test is given without train"),
        ({"recipe": "digits-cut", "learning_rate": 1}, "unknown keyword 'learning_rate'"),
        ({"recipe": "digits-cut", "num_members": 0}, "num_members is 0"),
        ({"recipe": "digits-cut", "resume": True}, "resume is true, but out is missing"),
    ],
)
def test_what_is_missing_is_one_sentence(given, message):
    with pytest.raises(InputError, match=message):
        mixmo.fit(**given)


def test_a_kept_configuration_is_a_recipe_as_well(tmp_path):
    """The configuration of a Dataset's run, with images of the same or another kind."""
    first = mixmo.fit("wide_resnet10_1", Prepared(), batch_size=12, out=tmp_path / "run", **SHORT)
    again = mixmo.fit(train=(IMAGES, LABELS), recipe=tmp_path / "run" / "config.yaml", **SHORT)
    assert not config(again)["data"]["own_transforms"] and config(first)["data"]["own_transforms"]
    with pytest.raises(InputError, match="images were passed from Python"):
        mixmo.fit(recipe=tmp_path / "run" / "config.yaml", **SHORT)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["name"] == "given"
