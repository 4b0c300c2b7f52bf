"""The YAML file of a sweep, and its trials."""

import itertools

import pytest
import yaml
from conftest import write_images, write_splits

from mixmo.cli.main import main
from mixmo.config.parsing import parse_arguments
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.config.settings import known_settings
from mixmo.errors import InputError, MissingError
from mixmo.sweeps import load_sweep


def names(trials):
    return list(dict.fromkeys(trial.name for trial in trials))


@pytest.fixture
def sweep(tmp_path):
    """Returns the trials of a `sweep` section in a recipe."""

    def load(section, *words, **recipe):
        file = tmp_path / "some.yaml"
        file.write_text(yaml.safe_dump({"extends": "digits-cut", **recipe, "sweep": section}, sort_keys=False))
        return load_sweep(file, parse_arguments(words, known_settings(), "sweep")[1])

    return load


def test_every_combination_is_a_trial_with_every_seed(sweep):
    found = sweep({"grid": {"mixer.alpha": [1, 2.5], "mixer.kind": ["cut", "linear"]}, "seeds": [3, 4]})
    wanted = list(itertools.product([3, 4], [1, 2.5], ["cut", "linear"]))
    settings = [trial.plan.settings for trial in found]
    assert [(own.seed, own.mixer.alpha, own.mixer.kind) for own in settings] == wanted
    assert [trial.key for trial in found][:2] == ["alpha-1_kind-cut/seed-3", "alpha-1_kind-linear/seed-3"]
    assert {own.data.split_seed for own in settings} == {0}, "all seeds are tested and validated on the same images"


def test_a_trial_is_the_run_of_fit(sweep):
    (trial,) = sweep({"grid": {"mixer.alpha": [3]}}, "--data.batch_size=8")
    alone = make_plan(load_recipe("digits-cut"), ["--mixer.alpha=3", "--data.batch_size=8", "--data.split_seed=0"])
    assert trial.plan.yaml == alone.yaml


def test_named_choices_set_several_settings_and_extend_recipes(sweep):
    methods = {
        "single": {"extends": "digits-single"},
        "b4": {"data": {"batch_repetition": 4}, "trainer": {"max_epochs": 10}},
        "as it is": None,
    }
    found = sweep({"grid": {"method": methods}})
    assert names(found) == ["single", "b4", "as-it-is"]
    plans = [trial.plan for trial in found]
    assert [plan.settings.model.num_members for plan in plans] == [1, 2, 2]
    assert [plan.epochs for plan in plans] == [40, 10, 20]
    assert [trial.choices for trial in found][2] == {"method": "as it is"}


def test_own_settings_of_the_file_are_above_what_choices_extend(sweep):
    found = sweep({"grid": {"method": {"single": {"extends": "digits-single"}}}}, data={"batch_size": 10})
    assert found[0].plan.settings.data.batch_size == 10


def test_values_are_called_as_yaml_writes_them(sweep):
    grid = {"optimizer.decay_all": [True, False], "data.image_size": [None, 16], "mixer.kind": [{"cut": 1, "cow": 0}]}
    assert names(sweep({"grid": grid}))[0] == "decay_all-true_image_size-null_kind-cut-1-cow-0"


def test_axes_whose_names_end_alike_are_told_apart(sweep):
    found = sweep({"grid": {"mixer.alpha": [1], "pixels.alpha": [2]}})
    assert names(found) == ["mixer.alpha-1_pixels.alpha-2"]


def test_long_names_end_with_a_digest(sweep):
    choices = {"short": None, "long" * 40: {"extends": "digits-single"}, "long" * 41: {"seed": 3}}
    short, *rest = names(sweep({"grid": {"method": choices}}))
    assert short == "short" and len(set(rest)) == 2 and all(len(name) == 129 for name in rest)


def test_what_is_added_leaves_the_trials_that_are_there(sweep):
    few = sweep({"grid": {"mixer.alpha": [1, 4]}})
    more = sweep({"grid": {"mixer.alpha": [0.5, 4, 1]}, "seeds": [2, 0]})
    plans = {trial.key: trial.plan.yaml for trial in more}
    assert all(plans[trial.key] == trial.plan.yaml for trial in few) and len(plans) == 6


def test_seeds_alone_are_a_sweep(sweep):
    assert [trial.key for trial in sweep({"seeds": [0, 1]})] == ["some/seed-0", "some/seed-1"]


def test_folds_alone_are_a_sweep(sweep):
    trials = sweep({"folds": 3})
    assert [trial.key for trial in trials] == [f"some/seed-0_fold-{fold}" for fold in range(3)]
    assert [(each.plan.settings.data.folds, each.plan.settings.data.fold) for each in trials] == [
        (3, 0),
        (3, 1),
        (3, 2),
    ]
    many = sweep({"folds": 2, "seeds": [0, 1], "grid": {"mixer.alpha": [1, 4]}})
    assert len(many) == 8 and {trial.choices["data.fold"] for trial in many} == {"0", "1"}
    assert many[2].key == "alpha-1/seed-0_fold-1" and many[2].name == "alpha-1"


@pytest.mark.parametrize(
    ("section", "words", "problem"),
    [
        ({}, [], "has no section `sweep`"),
        ({"grit": {}}, [], "unknown setting 'sweep.grit'; did you mean 'sweep.grid'"),
        ({"grid": {"mixer.alpa": [1]}}, [], "unknown setting in sweep.grid 'mixer.alpa'; did you mean"),
        ({"grid": {"mixer.alpha": []}}, [], "sweep.grid.mixer.alpha is []"),
        ({"grid": {"mixer.alpha": 3}}, [], "sweep.grid.mixer.alpha is 3; give a list of values"),
        ({"grid": {"method": {"a": 3}}}, [], "sweep.grid.method.a is 3"),
        ({"grid": {"method": {"a": {"extends": "nowhere"}}}}, [], "trial a: unknown base in"),
        ({"grid": {"mixer.alpha": [1, -1]}}, [], "trial alpha--1: mixer.alpha is -1"),
        ({"grid": {"mixer.alpha": [1, 1]}}, [], "two trials are called alpha-1/seed-0"),
        ({"grid": {"method": {"a": None, "b": {}}}}, [], "trials a/seed-0 and b/seed-0 have the same settings"),
        ({"grid": {"mixer.alpha": [1, 2]}}, ["--mixer.alpha=3"], "command-line option that overrides it"),
        ({"seeds": []}, [], "sweep.seeds is []"),
        ({"grid": None}, [], "sweep.grid is None; it must be a mapping"),
        ({"grid": {"seed": [1, 2]}}, [], "list seeds in sweep.seeds"),
        ({"grid": {"data.fold": [0, 1]}}, [], "set sweep.folds instead"),
        ({"grid": {"data.folds": [2, 3]}}, [], "has data.folds 3, but folds-2/seed-0_fold-0 2: different test images"),
        (
            {"grid": {"data.name": ["digits", "csv:a.csv"]}},
            [],
            "has data.name 'csv:a.csv', but name-digits/seed-0 'digits'",
        ),
        ({"grid": {"how": {"a": {}, "b": {"data": {"folds": 3}}}}}, [], "different test images cannot be compared"),
        (
            {"grid": {"data.images_per_class": [10, 20]}},
            [],
            "has data.images_per_class 20, not 10 as images_per_class-10/seed-0, so other test images would be drawn",
        ),
        ({"grid": {"data.validation": [0, 0.2]}}, ["--data.images_per_class=10"], "has data.validation 0.2, not 0.0"),
        ({"grid": {"data.split_seed": [0, 1]}, "folds": 2}, [], "has data.split_seed 1, not 0 as split_seed-0/seed-0_"),
        ({"folds": 1}, [], "sweep.folds is 1; it must be at least 2"),
        ({"grid": {"method": {"comparison": None}}}, [], "comparison is a reserved name"),
        ({"grid": {"mixer.alpha": [*range(1, 102)], "optimizer.lr": [*range(1, 101)]}}, [], "more than 10000"),
        ({"random": {"mixer.alpha": [1, 2]}}, [], "unknown setting 'sweep.random'"),
        ({"seeds": [1, 1]}, [], "sweep.seeds is [1, 1]"),
        ({"seeds": [0]}, ["--seed=1"], "--seed is not an option of a sweep"),
        ({"folds": 3}, ["--data.folds=4"], "--data.folds is not an option of a sweep; set sweep.folds in"),
        ({"seeds": [0]}, ["--run=x"], "unknown option '--run'"),
        ({"seeds": [0]}, ["--trainer.devices=2"], "each trial of a sweep trains on one device"),
    ],
)
def test_what_is_not_understood_is_one_sentence(sweep, section, words, problem):
    with pytest.raises(InputError) as found:
        sweep(section, *words)
    assert problem in str(found.value) and "\n" not in str(found.value)


def test_test_images_are_compared_only_if_they_are_drawn(sweep, tmp_path):
    """Folders with splits, and the test images of digits, are the same for all draws."""
    write_images(tmp_path / "whole", count=10)
    write_splits(tmp_path / "split")
    grid = {"grid": {"data.split_seed": [0, 1]}}
    assert len(sweep(grid)) == len(sweep({"grid": {"data.validation": [0, 0.2]}})) == 2
    assert len(sweep(grid, data={"name": f"folder:{tmp_path}/split"})) == 2
    whole = {"name": f"folder:{tmp_path}/whole"}
    assert len(sweep({"grid": {"data.images_per_class": [2, 4]}}, data=whole)) == 2
    with pytest.raises(InputError, match=r"has data\.split_seed 1, not 0"):
        sweep(grid, data=whole)


def test_fit_says_that_a_file_is_a_sweep(tmp_path, capsys):
    file = tmp_path / "some.yaml"
    file.write_text("extends: digits-cut\nsweep: {seeds: [0, 1]}\n")
    assert main(["fit", str(file)]) == 2
    assert f"`mixmo sweep {file}`" in capsys.readouterr().err
    with pytest.raises(MissingError):
        load_sweep(tmp_path / "missing.yaml")
