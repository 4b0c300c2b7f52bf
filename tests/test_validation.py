"""Settings from Python, NumPy and pathlib types; errors name the field."""

import copy
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import mixmo
from mixmo.batch_mixing import BatchMixer
from mixmo.config.parsing import parse_arguments
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.config.settings import ModelSettings, Settings, known_settings, neutral_settings
from mixmo.errors import InputError
from mixmo.pixel_mixing import PixelMixer
from mixmo.validation import fields_of

BASE = load_recipe("digits-cut")


def test_values_of_numpy_and_paths_are_taken_as_pythons():
    given = {"data": {"batch_size": np.int64(8), "flip": np.bool_(True), "mean": (np.float32(0.5),), "root": Path("a")}}
    given["data"]["image_size"] = np.array([8, 8])
    given |= {"seed": np.int64(3), "optimizer": {"lr": np.float64(0.1), "options": {"eps": np.float64(1e-8)}}}
    plan = make_plan({**BASE, **given, "data": {**BASE["data"], **given["data"]}})
    read = yaml.safe_load(plan.yaml)
    assert (read["data"]["batch_size"], read["data"]["flip"], read["data"]["mean"]) == (8, True, [0.5])
    assert read["data"]["image_size"] == [8, 8]
    assert (read["seed"], read["optimizer"]["lr"], read["data"]["root"]) == (3, 0.1, "a")
    assert make_plan(read).yaml == plan.yaml


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data": {"batch_size": 8.0}}, "data.batch_size is 8.0; it must be an integer"),
        ({"data": {"batch_size": np.array([8, 9])}}, "data.batch_size is array([8, 9]); it must be an integer"),
        ({"data": {"channels": True}}, "data.channels is True; it must be"),
        ({"data": {"channels": "3"}}, "data.channels is '3'; it must be an integer"),
        ({"data": {"crop_size": [8]}}, "data.crop_size is [8]; it must be an integer or be a height and a width"),
        ({"data": {"mean": {0.5, 0.25}}}, "data.mean is "),
        ({"optimizer": {"lr": np.bool_(True)}}, "optimizer.lr is np.True_; it must be a number"),
        ({"data": {"int": 1}}, "unknown setting 'data.int'"),
        ({"data": {"a[b": 1}}, "unknown setting 'data.a[b'"),
        ({"int": 1}, "unknown setting 'int'"),
        ({"mixer": "cut"}, "mixer is 'cut'; it must be a section of settings"),
        ({"mixer": {"num_members": 2}}, "mixer.num_members is not a setting"),
        ({"mixer": {"kind": {1: 1.0}}}, "mixer.kind is {1: 1.0}; it must map names of masks"),
        ({"mixer": {"kind": torch.zeros}}, "mixer.kind is a function, which config.yaml cannot store"),
        ({"model": {"options": {1: 2}}}, "model.options is {1: 2}; it must have strings as keys"),
        ({"model": {"options": {"a": object}}}, "it must hold plain values"),
    ],
)
def test_what_does_not_fit_is_named(values, said):
    with pytest.raises(InputError) as found:
        make_plan({**BASE, **{name: {**BASE.get(name, {}), **own} if isinstance(own, dict) else own
                              for name, own in values.items()}})  # fmt: skip
    assert said in str(found.value) and "Input should" not in str(found.value)


def test_a_list_that_holds_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(InputError, match="it must not be nested so deeply"):
        ModelSettings(options={"a": endless})


def test_positions_are_named_as_the_fields_they_are():
    with pytest.raises(InputError, match=r"^mixer.alpha is -1; it must be at least 0.$"):
        mixmo.Mixer("cut", 2, -1)
    with pytest.raises(InputError, match=r"^unknown pixels.kind 'cutmixx'; did you mean 'cutmix'"):
        PixelMixer("cutmixx")
    with pytest.raises(InputError, match=r"mixer.probability is 2"):
        BatchMixer(mixmo.MixMo("wide_resnet10_1", 2, num_classes=2), probability=2)
    with pytest.raises(TypeError, match="PixelMixer takes 3 arguments, and 4 were given"):
        PixelMixer("cutmix", 1.0, 0.5, 1)
    with pytest.raises(TypeError, match="Mixer got kind twice"):
        mixmo.Mixer("cut", kind="cut")


def test_mixers_are_values():
    mixer = mixmo.Mixer("cut", 3, alpha=1)
    for other in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer)), dataclasses.replace(mixer, alpha=1.0)):
        assert other == mixer and hash(other) == hash(mixer)
    with pytest.raises(dataclasses.FrozenInstanceError):
        mixer.alpha = 2.0
    with pytest.raises(InputError, match=r"unknown mixer.kind .own.masks:stripes."):
        mixmo.Mixer("own.masks:stripes", probability=1.0).sample(2, (1, 4, 4))  # a recipe's name of a function
    assert "Concentration of the Dirichlet" in mixmo.Mixer.__doc__


def test_the_section_mixer_has_the_members_of_the_model():
    assert make_plan({**BASE, "model": {"num_members": 4}}).settings.mixer.num_members == 4


def test_pixel_masks_compile_into_one_graph():
    torch.compiler.reset()
    explained = torch._dynamo.explain(lambda x: PIXELS.sample(2, 2, (4, 4)).sum() + x)(torch.zeros(()))
    assert explained.graph_break_count == 0


PIXELS = PixelMixer("mixup")


def test_every_setting_says_what_it_means():
    described = {name: field.description for name, field in fields_of(Settings).items()}
    assert described.keys() == known_settings().keys()
    assert all(described.values()), [name for name, text in described.items() if not text]
    assert neutral_settings() < described.keys()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--names=a"], {"names": ["a"]}),
        (["--names", "a", "b"], {"names": ["a", "b"]}),
        (["--names=[a, b]"], {"names": ["a", "b"]}),
        (["--means=0.5"], {"means": [0.5]}),
        (["--place", "a: b"], {"place": "a: b"}),
        (["--place", "[x]"], {"place": "[x]"}),
        (["--place="], {"place": ""}),
        (["--place=null"], {"place": None}),
        (["--flag", "null"], {"flag": None}),
        (["--precision", "16"], {"precision": "16"}),
        (["--lr="], {"lr": ""}),
    ],
)
def test_words_are_read_as_they_are_meant(words, expected):
    from typing import Literal

    known = {"names": list[str], "means": list[float], "place": str | None, "flag": bool | None, "lr": float | None}
    assert parse_arguments(words, known | {"precision": Literal["32", "16"]}, "x") == ([], expected)


def test_empty_places_are_refused(tmp_path, monkeypatch, capsys):
    from mixmo.cli.main import main

    monkeypatch.chdir(tmp_path)
    for words in (
        ["fit", "digits-cut", "--run="],
        ["preview", "digits-cut", "--out", ""],
        ["test", "a", "--predictions="],
    ):
        assert main(words) == 2
        assert "is ''; it must not be empty" in capsys.readouterr().err
    assert main(["predict", "a", "b", "-x"]) == 2 and "unknown argument '-x'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_starts_channels_hold_before_what_depends_on_them(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {backbone: resnet18}\ndata: {channels: 4}\n")
    recipe = {"model": {"pretrained": str(tmp_path)}, "data": {"mean": [0.1] * 4, "color_jitter": 0.0}}
    assert make_plan({**recipe, "trainer": {"max_epochs": 1}}).settings.data.channels == 4
