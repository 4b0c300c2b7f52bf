"""Recipes and command-line arguments: every value is checked, and none is ever executed."""

import math
import os
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from conftest import write_images
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mixmo.cli.main import main
from mixmo.config.keywords import ARGUMENTS, DERIVED, FitSettings, keywords
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.config.settings import known_settings
from mixmo.errors import InputError
from mixmo.files import read_yaml, write_text
from mixmo.runs import RunFolder

BASE = load_recipe("digits-cut")

WRONG = {
    "schedule: {kind: cosin}": "unknown schedule.kind 'cosin'; did you mean 'cosine'?",
    "data: {flip: no way}": "data.flip is 'no way'; it must be true or false.",
    "data: {padding_mode: reflecting}": "unknown data.padding_mode 'reflecting'; did you mean 'reflect'?",
    "data: {batch_size: '8'}": "data.batch_size is '8'; it must be an integer.",
    "data: {batch_size: 8.5}": "data.batch_size is 8.5; it must be an integer.",
    "data: {batch_size: true}": "data.batch_size is True; it must be an integer.",
    "data: {mean: 0.5}": "data.mean is 0.5; it must be a list.",
    "data: {mean: [a]}": "data.mean[0] is 'a'; it must be a number.",
    "data: {validation: .nan}": "data.validation is nan; it must be a finite number.",
    "data: 5": "data is 5; it must be a section of settings.",
    "model: {options: {num_classes: 3}}": "model.options.num_classes is not an option of timm's models",
    "optimizer: {options: {lr: 1}}": "optimizer.options.lr has its own setting; set optimizer.lr",
    "optimizer: {options: {nesterov: x}}": "optimizer 'sgd' cannot step with",
    "mixer: {alpha: 1.0e+300}": "mixer.alpha is 1e+300",
    "mixer: {root: 1.0e-300}": "mixer.root is 1e-300",
    "pixels: {probability: -1}": "pixels.probability is -1; it must be at least 0",
    "data: {std: [1.0e-320]}": "data.std[0] is 1e-320",
    "data: {image_size: 100000}": "data.image_size is 100000; it must be at most 8192",
    "data: {workers: 100000}": "data.workers is 100000; it must be at most 256",
    "data: {eval_batch_size: 100000000000000000000}": "data.eval_batch_size is 100000000000000000000",
    "trainer: {limit_train_batches: 0.001}": "trainer.limit_train_batches is 0.001, which leaves no batch",
    "data: {name: hfds/x}": "accesses the network; allow it with data.download: true",
    "model: {backbone: 'HF-HUB:timm/x'}": "has to be downloaded; allow it with model.download: true",
    "model: {options: {pretrained_cfg_overlay: {url: x}}}": "pretrained_cfg_overlay can make timm download",
    "seed: 1\nseed: 2": "key 'seed' appears twice",
    "data: {name: 5}": "data.name is 5; it must be a string.",
    "optimizer: {lr: fast}": "optimizer.lr is 'fast'; it must be a number.",
    "optimizer: {lr: .inf}": "optimizer.lr is inf; it must be a finite number.",
    "optimizer: {momentum: 2}": "optimizer.momentum is 2; it must be less than 1.",
    "mixer: {kind: {cut: x}}": "mixer.kind.cut is 'x'; it must be a number.",
    "mixer: {kind: [cut]}": "mixer.kind is ['cut']; it must be the name of a mask, a function",
    "mixer: {probability: null}": "mixer.probability is None; it must be a number.",
    "model: {options: [1]}": "model.options is [1]; it must be a mapping",
    "model: {options: {drop_rate: .nan}}": "model.options is {'drop_rate': nan}; it must hold finite numbers.",
    "model: {num_members: 100000}": "model.num_members is 100000; it must be at most 100.",
    "loggers: [tensorbord]": "unknown loggers[0] 'tensorbord'; did you mean 'tensorboard'?",
    "trainer: {accelerator: cup}": "unknown trainer.accelerator 'cup'; did you mean 'cpu'",
    "trainer: {max_epochs: -1}": "trainer.max_epochs is -1; it must be at least 1.",
    "trainer: {limit_train_batches: 2.5}": "trainer.limit_train_batches is 2.5; it must be an integer or be at most 1",
    "trainer: {gradient_clip_val: -1}": "trainer.gradient_clip_val is -1; it must be greater than 0.",
    "trainer: {precision: {class_path: os.system}}": "trainer.precision is {'class_path': 'os.system'}",
    "seed: 1.5": "seed is 1.5; it must be an integer.",
    "extends: [digits-cut, 7]": "extends in own.yaml has 7; it must name recipes or bases.",
    "extends: {a: 1}": "extends in own.yaml has {'a': 1}; it must name recipes or bases.",
    "2020-01-01: x": "unknown setting '2020-01-01'",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_value_in_a_file_is_one_sentence(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(text if "extends" in text else f"extends: digits-cut\n{text}\n")
    assert main(["fit", "own.yaml"]) == 2
    error = capsys.readouterr().err
    assert WRONG[text] in error and error.count("\n") == 1
    assert os.listdir() == ["own.yaml"]


def test_one_check_for_files_and_words():
    for key, text, message in [
        ("schedule.kind", "cosin", "did you mean 'cosine'"),
        ("data.flip", "no way", "it must be true or false"),
        ("optimizer.lr", ".nan", "it must be a finite number"),
    ]:
        with pytest.raises(InputError, match=message):
            make_plan(BASE, [f"--{key}={text}"])
        section, name = key.split(".")
        with pytest.raises(InputError, match=message):
            make_plan({**BASE, section: {**BASE[section], name: yaml.safe_load(text)}})


def test_values_are_read_as_they_are_meant(tmp_path):
    words = ["--optimizer.lr", "1e-3", "--data.name=2024", "--model.mix_at=null", "--mixer.kind={cut: 0.5, cow: 0.5}"]
    words += ["--model.options.drop_rate=0.1", "--model.options", "{drop_path_rate: 0.2}", "--trainer.max_epochs=3"]
    own = make_plan(BASE, words).settings
    assert (own.optimizer.lr, own.data.name, own.model.mix_at) == (1e-3, "2024", None)
    assert own.mixer.kind == {"cut": 0.5, "cow": 0.5}
    assert own.model.options == {"drop_path_rate": 0.2}  # the later word gives all options
    both = make_plan(BASE, ["--model.options={a: 1}", "--model.options.b=2"]).settings.model.options
    assert both == {"a": 1, "b": 2}
    assert make_plan({**BASE, "optimizer": {"lr": "1e-3"}}).settings.optimizer.lr == 1e-3
    for words, message in {("seed=1",): "unknown argument 'seed=1'", ("--seed",): "--seed needs a value"}.items():
        with pytest.raises(InputError, match=message):
            make_plan(BASE, words)


ATTACK = "{class_path: os.system, init_args: {command: 'touch attacked'}}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        f"model: {{options: {{x: {ATTACK}}}}}",
        f"model: {{options: {ATTACK}}}",
        f"optimizer: {{options: {{x: {ATTACK}}}}}",
        f"trainer: {{precision: {ATTACK}}}",
        f"trainer: {{accelerator: {ATTACK}}}",
        f"data: {ATTACK}",
        "model: {options: {x: !!python/object/apply:os.system ['touch attacked']}}",
    ],
)
def test_nothing_in_a_recipe_is_run(text, tmp_path, monkeypatch, few_masks, capsys):
    """Neither as a recipe nor as the configuration of a shared run; nothing is imported either."""
    write_images(tmp_path / "pictures" / "train")
    write_images(tmp_path / "pictures" / "test")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("trap.py").write_text("open('attacked', 'w')\ndef call(**_): pass\n")
    for content in (text, text.replace("os.system", "trap.call")):
        recipe = f"extends: digits-cut\n{content}\n"
        Path("own.yaml").write_text(recipe)
        run = RunFolder("shared")
        run.checkpoint_folder.mkdir(parents=True, exist_ok=True)
        run.config_file.write_text(recipe.replace("extends: digits-cut\n", "trainer: {max_epochs: 1}\n"))
        words = ["--data.name=folder:pictures", "--data.batch_size=8", "--trainer.max_epochs=1"]
        assert main(["fit", "own.yaml", *words]) == 2
        main(["preview", "own.yaml", *words])  # an optimiser's options are nothing to it
        for command in ("fit", "test", "compare"):
            assert main([command, "shared"]) == 2
        assert not Path("attacked").exists() and "trap" not in sys.modules
    assert "Traceback" not in capsys.readouterr().err


def test_values_without_an_end_are_refused(tmp_path):
    for name, text in {"loop": "a: &a [*a]", "deep": "a: " + "[" * 3000}.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        with pytest.raises(InputError, match=f"{name}.yaml is not valid YAML"):
            load_recipe(file)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3))
names = st.sampled_from(sorted(known_settings()))


def planned(*arguments):
    """Return a plan, or its error message."""
    try:
        return make_plan(*arguments)
    except InputError as error:
        return str(error)


@settings(max_examples=100)
@given(name=names | st.sampled_from(["data", "model", "model.options", "x", ""]), value=values)
def test_any_value_in_a_recipe_is_taken_or_refused_in_a_sentence(name, value):
    section, _, key = name.partition(".")
    plan = planned({**BASE, section: {**BASE.get(section, {}), key: value} if key else value})
    if isinstance(plan, str):
        assert plan.endswith((".", "?"))
        return
    assert make_plan(yaml.safe_load(plan.yaml)).yaml == plan.yaml  # what a run keeps is read back as it was
    assert all(math.isfinite(each) for each in vars(plan.settings.optimizer).values() if isinstance(each, float))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("configuration")


TEXTS = st.one_of(
    st.text(max_size=12),
    st.text("\x00\t\n\r\x1b\x85\xa0\u2028\u2029\ufeff a:#'\"", min_size=1, max_size=6),
    st.sampled_from(
        ["yes", "off", "1", "1e3", "0x1", "1:30", "2001-01-01", "null", "~", "<<", "=", "", "-", "? a", "&a"]
    ),
)
"""Texts that YAML could take for something else: line breaks, numbers, its own signs."""


@settings(max_examples=40)
@given(
    options=st.dictionaries(TEXTS, TEXTS | st.dictionaries(TEXTS, st.lists(TEXTS, max_size=2), max_size=2), max_size=3)
)
@example(options={"\x85": "a\x85b", "k": {"\x85": ["\x85"]}})
def test_texts_are_read_back_from_a_runs_configuration_as_they_were(options, folder):
    plan = planned({**BASE, "model": {**BASE["model"], "options": options}})
    assume(not isinstance(plan, str))
    again = make_plan(read_yaml(write_text(folder / "config.yaml", plan.yaml), "configuration"))
    assert plan.settings.model.options == again.settings.model.options == options


@settings(max_examples=80)
@given(name=names, text=st.text(max_size=12) | values.map(lambda value: yaml.safe_dump(value).split("\n...")[0]))
def test_any_word_is_taken_or_refused_in_a_sentence(name, text):
    plan = planned(BASE, [f"--{name}={text}"])
    assert plan.endswith((".", "?")) if isinstance(plan, str) else plan.settings


def test_keywords_are_the_settings():
    """Each setting has one keyword, of its type, so that editors complete them."""
    assert sorted(keywords().values()) == sorted(set(known_settings()) - DERIVED)
    assert not set(keywords()) & set(ARGUMENTS)
    hints = get_type_hints(FitSettings)
    known = known_settings() | {"mixer.kind": dict[str, float] | str}  # no function, which a file cannot hold
    assert hints == {keyword: known[name] for keyword, name in keywords().items()}
