"""The YAML file of a sweep, and the trials it asks for."""

import itertools
import math

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mixmo.cli.main import main
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.config.settings import known_settings
from mixmo.config.words import read_words
from mixmo.errors import InputError, MissingError
from mixmo.sweeps.draws import draw
from mixmo.sweeps.grid import load_sweep


@pytest.fixture
def sweep(tmp_path):
    """Returns the trials of a section `sweep` on top of a recipe."""

    def load(section, *words, **recipe):
        file = tmp_path / "some.yaml"
        file.write_text(yaml.safe_dump({"extends": "digits-cut", **recipe, "sweep": section}, sort_keys=False))
        return load_sweep(file, read_words(words, known_settings(), "sweep")[1])

    return load


def test_every_combination_is_a_trial_with_every_seed(sweep):
    found = sweep({"grid": {"mixer.alpha": [1, 2.5], "mixer.kind": ["cut", "linear"]}, "seeds": [3, 4]})
    wanted = list(itertools.product([3, 4], [1, 2.5], ["cut", "linear"]))
    settings = [trial.plan.settings for trial in found.trials]
    assert [(own.seed, own.mixer.alpha, own.mixer.kind) for own in settings] == wanted
    assert [trial.key for trial in found.trials][:2] == ["alpha-1_kind-cut/seed-3", "alpha-1_kind-linear/seed-3"]
    assert {own.data.split_seed for own in settings} == {0}, "all seeds are tested and validated on the same images"


def test_a_trial_is_the_run_of_fit(sweep):
    (trial,) = sweep({"grid": {"mixer.alpha": [3]}}, "--data.batch_size=8").trials
    alone = make_plan(load_recipe("digits-cut"), ["--mixer.alpha=3", "--data.batch_size=8", "--data.split_seed=0"])
    assert trial.plan.yaml == alone.yaml and trial.seed == alone.settings.seed


def test_named_choices_set_several_settings_and_extend_recipes(sweep):
    methods = {
        "single": {"extends": "digits-single"},
        "b4": {"data": {"batch_repetition": 4}, "trainer": {"max_epochs": 10}},
        "as it is": None,
    }
    found = sweep({"grid": {"method": methods}})
    assert found.names == ["single", "b4", "as-it-is"]
    plans = [trial.plan for trial in found.trials]
    assert [plan.settings.model.num_members for plan in plans] == [1, 2, 2]
    assert [plan.trainer["max_epochs"] for plan in plans] == [40, 10, 20]
    assert [trial.choices for trial in found.trials][2] == {"method": "as it is"}


def test_own_settings_of_the_file_are_above_what_choices_extend(sweep):
    found = sweep({"grid": {"method": {"single": {"extends": "digits-single"}}}}, data={"batch_size": 10})
    assert found.trials[0].plan.settings.data.batch_size == 10


def test_values_are_called_as_yaml_writes_them(sweep):
    grid = {"optimizer.decay_all": [True, False], "data.image_size": [None, 16], "mixer.kind": [{"cut": 1, "cow": 0}]}
    assert sweep({"grid": grid}).names[0] == "decay_all-true_image_size-null_kind-cut-1-cow-0"


def test_axes_whose_names_end_alike_are_told_apart(sweep):
    found = sweep({"grid": {"mixer.alpha": [1], "pixels.alpha": [2]}})
    assert found.names == ["mixer.alpha-1_pixels.alpha-2"]


def test_long_names_end_with_a_digest(sweep):
    choices = {"short": None, "long" * 40: {"extends": "digits-single"}, "long" * 41: {"seed": 3}}
    short, *names = sweep({"grid": {"method": choices}}).names
    assert short == "short" and len(set(names)) == 2 and all(len(name) == 129 for name in names)


def test_what_is_added_leaves_the_trials_that_are_there(sweep):
    few = sweep({"grid": {"mixer.alpha": [1, 4]}})
    more = sweep({"grid": {"mixer.alpha": [0.5, 4, 1]}, "seeds": [2, 0]})
    plans = {trial.key: trial.plan.yaml for trial in more.trials}
    assert all(plans[trial.key] == trial.plan.yaml for trial in few.trials) and len(plans) == 6


def test_draws_that_come_twice_count_once(sweep):
    few, more = (sweep({"random": {"mixer.kind": ["cut", "linear"]}, "samples": count}) for count in (2, 30))
    assert set(few.names) <= set(more.names) == {"kind-cut", "kind-linear"} and len(more.trials) == 2
    assert more.names[: len(few.names)] == few.names


def test_seeds_alone_are_a_sweep(sweep):
    assert [trial.key for trial in sweep({"seeds": [0, 1]}).trials] == ["some/seed-0", "some/seed-1"]


def test_random_draws_are_a_function_of_seed_and_number(sweep):
    random = {"mixer.alpha": {"low": 1, "high": 9}, "model.num_members": {"low": 1, "high": 4}, "mixer.kind": ["cut"]}
    few, more, other = (
        [trial.choices for trial in sweep({"random": random} | options, **{"data": {"validation": 0.1}}).trials]
        for options in ({"samples": 3}, {"samples": 6}, {"samples": 3, "draw_seed": 1})
    )
    assert more[:3] == few and other != few and len(more) == 6
    assert len({own["mixer.alpha"] for own in more}) == 6


@given(st.integers(0, 2**31), st.integers(1, 50), st.integers(1, 50), st.booleans(), st.booleans())
def test_draws_lie_between_their_ends(seed, low, more, log, whole):
    high = low + more if whole else low + more / 3 + 1e-7
    value = draw(
        {"low": low, "high": high, "log": log}, int | None if whole else float, np.random.default_rng(seed), "x"
    )
    assert low <= value <= high and isinstance(value, int if whole else float)


def test_logarithmic_draws_are_even_in_the_logarithm():
    generator = np.random.default_rng(0)
    values = [draw({"low": 1e-4, "high": 1, "log": True}, float, generator, "x") for _ in range(2000)]
    counts, _ = np.histogram(np.log10(values), bins=4, range=(-4, 0))
    assert abs(counts - 500).max() < 5 * math.sqrt(500)


def test_integers_come_with_both_ends():
    generator = np.random.default_rng(0)
    assert {draw({"low": 1, "high": 4}, int, generator, "x") for _ in range(100)} == {1, 2, 3, 4}
    assert {draw([3, 7], int, generator, "x") for _ in range(100)} == {3, 7}


@pytest.mark.parametrize(
    ("section", "words", "problem"),
    [
        ({}, [], "has no section `sweep`"),
        ({"grit": {}}, [], "unknown setting 'sweep.grit'; did you mean 'sweep.grid'"),
        ({"samples": 3}, [], "nothing to vary"),
        ({"grid": {"mixer.alpa": [1]}}, [], "unknown setting in sweep.grid 'mixer.alpa'; did you mean"),
        ({"grid": {"mixer.alpha": []}}, [], "sweep.grid.mixer.alpha is []"),
        ({"grid": {"mixer.alpha": 3}}, [], "sweep.grid.mixer.alpha is 3; it lists values"),
        ({"grid": {"method": {"a": 3}}}, [], "sweep.grid.method.a is 3"),
        ({"grid": {"method": {"a": {"extends": "nowhere"}}}}, [], "trial a: unknown base in"),
        ({"grid": {"mixer.alpha": [1, -1]}}, [], "trial alpha--1: mixer.alpha is -1"),
        ({"grid": {"mixer.alpha": [1, 1]}}, [], "two trials are called alpha-1/seed-0"),
        ({"grid": {"method": {"a": None, "b": {}}}}, [], "two trials of the sweep are the same, a/seed-0 and b/seed-0"),
        ({"grid": {"mixer.alpha": [1, 2]}}, ["--mixer.alpha=3"], "an override of the command line"),
        ({"seeds": []}, [], "sweep.seeds is []"),
        ({"grid": None}, [], "sweep.grid is None; it must be a mapping"),
        ({"grid": {"mixer.alpha": [1]}, "asha": True}, [], "sweep.asha is True; it must be a section of settings"),
        ({"grid": {"seed": [1, 2]}}, [], "list seeds in sweep.seeds"),
        ({"grid": {"method": {"comparison": None}}}, [], "is named comparison, as a file in its folder is"),
        ({"grid": {"mixer.alpha": [1]}, "random": {"mixer.alpha": [2]}}, [], "stands in both"),
        ({"seeds": [0], "draw_seed": -1}, [], "sweep.draw_seed is -1"),
        ({"seeds": [0], "asha": {"grace_epochs": 20}}, [], "and trials have 20 epochs: nothing would be stopped"),
        ({"random": {"mixer.alpha": [1]}, "samples": 2**63}, [], "configurations; 10000 are the most"),
        ({"grid": {"data.validation": [0.1, 0.2]}, "asha": {}}, [], "but data.validation differs among trials"),
        ({"seeds": [1, 1]}, [], "sweep.seeds is [1, 1]"),
        ({"seeds": [0]}, ["--seed=1"], "--seed is not for a sweep"),
        ({"seeds": [0]}, ["--run=x"], "unknown option '--run'"),
        ({"seeds": [0]}, ["--trainer.devices=2"], "each trial of a sweep takes one device"),
        ({"random": {"mixer.alpha": {"low": 1}}}, [], "sweep.random.mixer.alpha is {'low': 1}"),
        ({"random": {"mixer.alpha": {"low": 2, "high": 1}}}, [], "goes from 2 to 1"),
        ({"random": {"mixer.alpha": {"low": 0, "high": 1, "log": True}}}, [], "and above 0"),
        ({"random": {"mixer.alpha": {"low": 1, "high": 2}}, "samples": 0}, [], "sweep.samples is 0"),
        ({"random": {"mixer.alpha": {"low": 1, "high": 2}}}, ["--data.validation=0"], "the test set never chooses"),
        ({"seeds": [0], "asha": {}}, ["--data.validation=0"], "the test set never chooses"),
        ({"seeds": [0], "asha": {"reduction": 1}}, [], "sweep.asha.reduction is 1; it must be at least 2"),
        ({"seeds": [0], "asha": {"grace": 1}}, [], "unknown setting 'sweep.asha.grace'"),
        ({"grid": {"trainer.max_epochs": [2, 3]}, "asha": {}}, [], "theirs are 2 and 3"),
    ],
)
def test_what_is_not_understood_is_one_sentence(sweep, section, words, problem):
    with pytest.raises(InputError) as found:
        sweep(section, *words)
    assert problem in str(found.value) and "\n" not in str(found.value)


def test_fit_says_that_a_file_is_a_sweep(tmp_path, capsys):
    file = tmp_path / "some.yaml"
    file.write_text("extends: digits-cut\nsweep: {seeds: [0, 1]}\n")
    assert main(["fit", str(file)]) == 2
    assert f"`mixmo sweep {file}`" in capsys.readouterr().err
    with pytest.raises(MissingError):
        load_sweep(tmp_path / "missing.yaml")
