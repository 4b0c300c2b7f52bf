"""Studies: every row once, with equal training compute; tables and plots of rows."""

import csv
import doctest
import importlib
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import InThisProcess, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from test_package import run

from mixmo.config.recipes import load_recipe
from mixmo.errors import InputError

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
study, study_metrics, study_plans, study_tables, tuning = (
    importlib.import_module(name) for name in ("study", "study_metrics", "study_plans", "study_tables", "tuning")
)

FILE = ROOT / "benchmarks" / "study.py"


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    monkeypatch.setattr(tuning, "ProcessPoolExecutor", InThisProcess)


STUDY = """
seeds: [3]
settings: {extends: [digits], model: {backbone: wide_resnet10_1}, data: {validation: 0.0, images_per_class: 10}}
tasks:
  few: {passes: 2}
  fewer: {passes: 2, methods: [single], data: {images_per_class: 5}}
methods:
  single: {extends: [single]}
  cut: {extends: [cut, b2], data: {input_repetition: 0.5}}
  two: {extends: [single], networks: 2}
  two halves: {extends: [single], networks: 2, passes: 0.5}
"""


@pytest.mark.slow
def test_a_study_makes_each_row_once(tmp_path, run_here):
    """A row for every task, method and seed; two networks cost twice as much, or have half the passes each.

    The last part uses separate processes.
    """
    (tmp_path / "study.yaml").write_text(STUDY)
    words = [FILE, "study.yaml", "--out=rows", "--jobs=1"]
    assert "5 rows to make, of 6 networks" in run_here(*words)
    with (tmp_path / "rows/study.csv").open(newline="") as file:
        rows = {(row["task"], row["method"], row["seed"]): row for row in csv.DictReader(file)}
    assert len(rows) == 5 and {seed for *_, seed in rows} == {"3"}
    cost = {method: float(rows["few", method, "3"]["images_in_training"]) for method in ("single", "cut", "two")}
    assert cost["two"] == 2 * cost["single"] == 2 * cost["cut"] > 0
    assert float(rows["few", "two halves", "3"]["images_in_training"]) == cost["single"]
    single, two = (float(rows["few", method, "3"]["macs"]) for method in ("single", "two"))
    assert two == 2 * single
    assert (rows["few", "single", "3"]["test_images"], rows["fewer", "single", "3"]["test_images"]) == ("1697", "1747")
    lines = (tmp_path / "rows/study.csv").read_text().splitlines()
    (tmp_path / "rows/study.csv").write_text("\n".join(lines[:-1]) + "\n")  # stopped before the last row
    assert "1 rows to make, of 1 networks" in run(*words, cwd=tmp_path)
    assert sorted((tmp_path / "rows/study.csv").read_text().splitlines()) == sorted(lines)
    (tmp_path / "curves.csv").write_text("method,passes,train_loss,train_accuracy,lr\nkept,1,2.0,0.5,0.1\n")
    curves = ["study.yaml", "few", "--curves=curves.csv", "--picture=curves.svg"]
    run_here(FILE.with_name("study_curves.py"), *curves)
    with (tmp_path / "curves.csv").open(newline="") as file:
        passes = [(row["method"], row["passes"]) for row in csv.DictReader(file)]
    both = [(name, n) for name in ("single", "two") for n in "12"]
    assert passes == [("kept", "1"), *both[:2], ("cut", "2"), *both[2:], ("two halves", "1")]
    assert (tmp_path / "curves.svg").stat().st_size > 1000


@pytest.mark.slow
def test_a_study_evaluates_on_other_images(tmp_path, run_here):
    """Corrupted and OOD images have columns; networks start from a previously trained one, or a file."""
    for seed, folder in enumerate(("photos/train", "photos/test", "others/train", "others/test")):
        write_images(tmp_path / folder, classes=("cat", "dog"), count=6, seed=seed)
    (tmp_path / "study.yaml").write_text("""
seeds: [0]
settings: {extends: [digits], data: {name: torch/cifar10, channels: 3, batch_size: 4, validation: 0.0}}
evaluate: {corruptions: true}
tasks: {few: {passes: 4, evaluate: {ood: [torch/cifar100]}}}
methods:
  started: {extends: [cut, b2], passes: 0.5, start: single, model: {member_noise: 1.0}}
  single: {extends: [single], passes: 0.5}
  from a file: {extends: [single], passes: 0.5, model: {pretrained: weights.pth}}
""")
    trained = timm.create_model("wide_resnet10_1", in_chans=3, num_classes=2)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    words = [FILE, "study.yaml", "--out=rows", "--jobs=2", "--data"]
    printed = run_here(*words, "torch/cifar10=folder:photos", "torch/cifar100=folder:others")
    assert "3 rows to make, of 3 networks" in printed
    rows = {row["method"]: row for row in study.read_rows(tmp_path / "rows/study.csv")}
    assert rows.keys() == {"single", "started", "from a file"} and rows["single"]["d_re"] == ""
    for row in rows.values():
        assert row["device"]
        shares = [float(row[key]) for key in ("corrupted_accuracy", "ood_auroc", "ood_fpr95")]
        assert all(0 <= share <= 1 for share in shares) and float(row["corrupted_nll"]) > 0


TUNED = """
seeds: [3]
settings: {extends: [digits], model: {backbone: wide_resnet10_1}, data: {validation: 0.0, images_per_class: 10}}
tuning:
  trials: 2
  seed: 1
  folds: 2
  space: {optimizer.base_lr: {low: 0.01, high: 0.1}}
  members: {data.input_repetition: [0.25, 0.75]}
tasks: {few: {passes: 2}}
methods:
  cut: {extends: [cut, b2], data: {input_repetition: 0.5}}
  two halves: {extends: [single], networks: 2, passes: 0.5}
"""


@pytest.mark.slow
def test_a_study_tunes_each_method_with_as_many_trials(tmp_path, run_here):
    """Rows have the settings of the trial with the lowest score, and no trial is repeated."""
    (tmp_path / "study.yaml").write_text(TUNED)
    words = [FILE, "study.yaml", "--out=rows", "--jobs=1"]
    run_here(*words)
    files = [tmp_path / f"rows/study{kind}.csv" for kind in ("", ".trials", ".chosen")]
    rows, trials, chosen = map(study.read_rows, files)
    assert sorted((row["method"], row["trial"], row["fold"]) for row in trials) == [
        (method, trial, fold) for method in ("cut", "two halves") for trial in "01" for fold in "01"
    ]
    assert {(row["training_images"], row["validation_images"]) for row in trials} == {("50", "50")}  # of 10 × 10
    assert len(rows) == len(chosen) == 2
    rates = {row["trial"]: yaml.safe_load(row["settings"]).get("optimizer.base_lr") for row in trials}
    for row, choice in zip(rows, chosen, strict=True):
        scores = {
            trial: np.mean([float(row[tuning.SCORE]) for row in trials if (row["method"], row["trial"]) == key])
            for trial in "01"
            for key in [(choice["method"], trial)]
        }
        assert choice["trial"] == min(scores, key=scores.get) and row["trials"] == choice["trials"] == "2"
        assert float(choice[tuning.SCORE]) == pytest.approx(min(scores.values()), rel=1e-5)
        settings = yaml.safe_load(choice["settings"])
        assert float(row["base_lr"]) == settings.get("optimizer.base_lr", 0.1) and rates[choice["trial"]] in (
            None,
            float(row["base_lr"]),
        )
        assert 1597 < int(row["test_images"]) < 1697  # 10 × 10 that train and as many that chose, some of them the same
    assert all(len(row["digest"]) == 12 and row["aurc"] and row["set_size_95_two_fold"] for row in rows)
    contents = [file.read_text().splitlines() for file in files]
    (tmp_path / "study.yaml").write_text(TUNED.replace("passes: 2}", "passes: 4}"))
    with pytest.raises(SystemExit) as refused:
        run_here(*words)
    assert refused.value.code == (
        "error: rows/study.trials.csv has the row few, cut, 0, 0 with other settings than the study says now; undo the "
        "edit, take another --out, or delete that row."
    )
    (tmp_path / "study.yaml").write_text(TUNED)
    assert [file.read_text().splitlines() for file in files] == contents
    files[0].write_text("\n".join(contents[0][:-1]) + "\n")
    files[1].write_text("\n".join(contents[1][:-1]) + "\n")  # stopped before the last of each
    assert run_here(*words).count("1 rows to make, of 2 networks") == 1
    assert [file.read_text().splitlines() for file in files] == contents


@pytest.mark.slow
def test_trials_that_diverge_are_not_chosen(tmp_path):
    """A diverging learning rate loses only its trial; if all diverge, the study reports it and keeps its rows."""
    rates = "{optimizer.base_lr: [1.0e+30]}"
    edited = TUNED.replace("{optimizer.base_lr: {low: 0.01, high: 0.1}}", rates).replace("passes: 2}", "passes: 10}")
    content = yaml.safe_load(edited)
    parts = [content["settings"], content["tasks"]["few"], content["methods"]["two halves"]]
    call = (content["tuning"], parts, ("few", "two halves"), tmp_path / "rows", tmp_path / "scratch", 1, {})
    assert tuning.choose(*call) == {}
    rows = study.read_rows(tmp_path / "rows.trials.csv")
    assert {row["trial"] for row in rows if row[tuning.SCORE] == ""} == {"1"} and len(rows) == 4
    with pytest.raises(InputError, match=r"All 1 trials of few, two halves diverged"):
        tuning.best_trial([row for row in rows if row["trial"] == "1"])


@pytest.mark.slow
def test_a_network_that_diverges_loses_its_rows_alone(tmp_path, run_here):
    edited = STUDY.replace("cut: {extends: [cut, b2],", "cut: {extends: [cut, b2], optimizer: {base_lr: 1.0e+30},")
    (tmp_path / "study.yaml").write_text(edited.replace("passes: 2", "passes: 4"))
    printed = run_here(FILE, "study.yaml", "--out=rows", "--jobs=1", "--tasks=few")
    assert "No row for few, cut, 3: the loss or its gradient was not finite" in printed
    methods = {row["method"] for row in study.read_rows(tmp_path / "rows/study.csv")}
    assert methods == {"single", "two", "two halves"}


def test_folds_leave_images_to_validate_on():
    content = yaml.safe_load(TUNED)
    parts = [content["settings"], content["tasks"]["few"], content["methods"]["two halves"]]
    plan = next(study.plans_of(parts, 1, {}))
    for folds in (1, 11):
        with pytest.raises(InputError, match=f"tuning.folds is {folds}, .* have 10 of the rarest class"):
            tuning.fold_of(plan, 0, folds)


@pytest.mark.slow
def test_many_processes_append_to_one_file(tmp_path):
    """Each row is complete and written by the first process only; different columns are refused."""
    file = tmp_path / "rows.csv"
    with ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
        rows = [{"seed": seed % 10, "nll": seed} for seed in range(40)]
        done = list(pool.map(study_plans.append, [file] * 40, rows, [["seed"]] * 40))
    assert sum(done) == 10 and sorted(int(row["seed"]) for row in study.read_rows(file)) == list(range(10))
    content = file.read_text()
    with pytest.raises(InputError, match="other columns than seed, ece; name another --out"):
        study_plans.append(file, {"seed": 11, "ece": 0.0}, ["seed"])
    assert file.read_text() == content


def test_trials_see_none_of_the_test_images():
    """Folds divide the seed's training images, each held out once; all methods draw the same values."""
    content = yaml.safe_load(TUNED)
    parts = [content["settings"], content["tasks"]["few"], content["methods"]["two halves"]]
    plan = next(study.plans_of(parts, 1, {}))
    whole = tuning.DataModule(plan.settings.data, plan.settings.seed)
    names = {kind: [whole.source(kind).name(i) for i in range(len(whole.source(kind)))] for kind in ("train", "test")}
    held_out = []
    for fold in range(2):
        _, data = tuning.fold_of(plan, fold, 2)
        one, other = ([data.source(kind).name(i) for i in range(50)] for kind in ("train", "test"))
        assert len(data.train) == len(data.test) == 50 and sorted(one + other) == sorted(names["train"])
        assert not set(one + other) & set(names["test"])
        held_out += other
    assert sorted(held_out) == sorted(names["train"])
    single, several = (tuning.draw_trials(content["tuning"] | {"trials": 8}, members) for members in (False, True))
    assert len(single) == len(several) == 8 and single[0] == several[0] == {}
    for one, other in zip(single[1:], several[1:], strict=True):
        assert one == {"optimizer.base_lr": other["optimizer.base_lr"]} and 0.01 <= one["optimizer.base_lr"] <= 0.1


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_studies_are_of_equal_compute(file, tmp_path):
    """A row's networks share the task's passes, or twice that if stated; a step of SAM counts twice."""
    content = yaml.safe_load(file.read_text())
    content["seeds"] = content["seeds"][:1]
    rows = list(study.rows_of(content, tmp_path, {}))
    assert len(rows) >= (1 if file.stem == "cifar10-settings" else 3)  # which explains one row of another study
    for row in rows:
        if row.about["method"].startswith("start of"):
            continue
        passes = 0
        for plan in (*row.starts, *row.plans):
            steps = 2 if plan.settings.optimizer.sam_radius else 1
            passes += steps * plan.epochs * plan.settings.data.batch_repetition
            assert plan.settings.data.split_seed == 0
        twice = "two networks" in row.about["method"] and "equal" not in row.about["method"]
        assert 0.95 <= passes / row.about["passes"] / (2 if twice else 1) <= 1, row.about
        assert len({plan.settings.seed for plan in row.plans}) == len(row.plans)


def test_examples_in_the_tables():
    for module, least in ((study_tables, 2), (tuning, 3), (study_metrics, 2), (study_plans, 1)):
        assert doctest.testmod(module).attempted >= least and not doctest.testmod(module).failed


def rows_of(values, other):
    """Return rows of two methods, with one seed per value."""
    return [
        {"task": "t", "method": name, "seed": str(seed), "nll": str(value), "accuracy": str(value)}
        for name, each in (("new", values), ("old", other))
        for seed, value in enumerate(each)
    ]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3)), min_size=2, max_size=6))
def test_intervals_are_students(pairs):
    """Of the mean of paired differences, by SciPy."""
    new, old = map(np.array, zip(*pairs, strict=True))
    found = study_tables.difference(rows_of(new, old), "t", "new", "old", "nll")
    assert found.mean == pytest.approx((new - old).mean(), abs=1e-12)
    assert found.wins == (new < old).sum()
    if np.std(new - old) > 1e-9:
        low, high = ttest_rel(new, old).confidence_interval(0.95)
        assert found.half == pytest.approx((high - low) / 2, rel=1e-6)
        assert found.sure == (low > 0 or high < 0)


def test_seeds_that_one_method_lacks_are_left_out():
    rows = rows_of([1.0, 2.0, 3.0], [0.5])
    found = study_tables.difference(rows, "t", "new", "old", "nll")
    assert (found.count, found.mean) == (1, 0.5) and np.isnan(found.half) and not found.sure
    assert study_tables.difference(rows, "t", "new", "absent", "nll") is None


def test_tables_and_pictures_of_kept_rows(tmp_path):
    kept = (ROOT / "benchmarks" / "results").glob("*.csv")
    files = [file for file in kept if "." not in file.stem and file.stem != "recipes"]
    assert files
    for file in files:
        rows = study.read_rows(file)
        keys = [(row["task"], row["method"], row["seed"]) for row in rows]
        assert len(set(keys)) == len(keys) and all(row["torch"] and row["device"] for row in rows)
        tasks = dict.fromkeys(row["task"] for row in rows)
        assert all(study_tables.table(rows, task, ["single"]).count("\n") >= 2 for task in tasks)
    rows = study.read_rows(ROOT / "benchmarks" / "results" / "digits-tuned.csv")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        study_tables.draw_intervals(rows, ["Cut-MixMo", "absent"], "single").savefig(tmp_path / "differences.svg")
    picture = (tmp_path / "differences.svg").read_text()
    assert (
        "digits, 20 images, 320 passes" in picture
        and "Cut-MixMo" in picture
        and "Differences to single" in picture
        and "absent" not in picture
    )


def test_tables_of_rows_that_were_tuned(tmp_path, monkeypatch):
    """A page's tables: all columns with latencies, a few columns, and the chosen settings."""
    precisions = {"new": "32-true", "old": "bf16-mixed"}
    rows = [
        row | {"task": "t", "passes": "2", "precision": precisions[row["method"]],
               "nll_two_fold": row["nll"], "macs": "2e6", "parameters": "1e6",
               "trials": "6", "base_lr": "0.1", "weight_decay": "0.01", "selectivity": "1", "input_repetition": "0.5"}
        for row in rows_of([0.25, 0.75], [0.5, 1.5])
    ]  # fmt: skip
    monkeypatch.setattr(study_tables, "RESULTS", tmp_path)
    for row in rows:
        study_plans.append(tmp_path / "few.csv", row, study.KEYS)
    latencies = {"batch 1": {"new": {"ratio": 1.25}, "old": {"ratio": 1.0}}}
    (tmp_path / "few.latency.json").write_text(json.dumps({"tables": latencies}))
    marks = [f"<!-- {kind} few.csv | t | old -->" for kind in ("study", "brief", "chosen")]
    tables = study_tables.renewed("\n\n".join(marks) + "\n\nend").split("<!--")[1:]
    whole, brief, chosen = (
        [dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], row)), strict=True))
         for row in lines[2:]]
        for table in tables for lines in [[line for line in table.splitlines() if line.startswith("|")]]
    )  # fmt: skip
    assert [row[""] for row in whole] == ["new", "old"]
    assert whole[0]["parameters, M"] == "1.00" and whole[0]["ms, batch 1, against single"] == "1.25"
    assert "parameters, M" not in brief[0] and brief[1]["MACs, M"] == "2.0"
    assert whole[0]["NLL, scaled against old"] == brief[0]["NLL, scaled against old"] == "−0.500 [−3.677, +2.677]"
    assert chosen == [{"": name, "learning rate": "0.1", "weight decay": "0.01", "rho": "0.5", "trials": "6",
                       "precision": precision} for name, precision in precisions.items()]  # fmt: skip


def test_overview_marks_significant_differences(tmp_path, monkeypatch):
    """Bold for the better, italics for the worse, neither if the interval includes zero, on each dataset."""
    monkeypatch.setattr(study_tables, "RESULTS", tmp_path)
    datasets = {
        "digits": {"new": ([0.9, 0.9], [3.0, 3.1]), "old": ([0.8, 0.8], [2.0, 2.1])},
        "cifar10-50": {"new": ([0.7, 0.5], [1.0, 1.1]), "old": ([0.6, 0.6], [2.0, 2.1]), "third": ([0.6], [2.0])},
    }
    for dataset, methods in datasets.items():
        for method, columns in methods.items():
            for seed, (accuracy, nll) in enumerate(zip(*columns, strict=True)):
                row = {"task": "t", "method": method, "seed": seed, "dataset": dataset, "digest": "",
                       "accuracy": accuracy, "nll_two_fold": nll}  # fmt: skip
                study_plans.append(tmp_path / f"{dataset}.csv", row, study.KEYS)
    (tmp_path / "digits.latency.json").write_text(json.dumps({"tables": {"batch 1": {"new": {"ratio": 1.26}}}}))
    text = study_tables.renewed("<!-- overview digits.csv; cifar10-50.csv | t | old -->\n\n")
    assert [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:] == [
        ["new", "1.3×", "**90.0**", "*3.050*", "60.0", "**1.050**"],
        ["old", "", "80.0", "2.050", "60.0", "2.050"],
        ["third", "", "", "", "60.0", "2.000"],
    ]
    assert "| digits, top-1 % | digits, NLL, scaled | CIFAR-10, top-1 % |" in text


@pytest.mark.slow
def test_a_recipe_is_timed_once(tmp_path, run_here):
    """In a separate process."""
    words = [FILE.with_name("recipes.py"), "digits-cut", "--out=rows", "--settings", "trainer.max_epochs=1"]
    run_here(*words, "trainer.limit_train_batches=2")
    (row,) = study_plans.read_rows(tmp_path / "rows/recipes.csv")
    assert row["epochs"] == "1" and row["data"] == "digits"
    assert 200 < int(row["memory_mib"]) < 20_000 and float(row["seconds"]) > 0 and 0 < float(row["accuracy"]) < 1
    assert row["digest"] != study_plans.digest_of([load_recipe("digits-cut")])  # no row of the recipe as it is
    run_here(*words, "trainer.limit_train_batches=2")
    assert len(study_plans.read_rows(tmp_path / "rows/recipes.csv")) == 1
    with pytest.raises(SystemExit, match="with other settings than the study says"):
        run_here(*words)
