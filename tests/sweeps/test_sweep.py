"""Whole sweeps: sequential, interrupted and resumed, shared between processes, and compared."""

import csv
import re
import shutil
import signal

import numpy as np
import pytest
import yaml
from conftest import write_images
from killing import Ask, differences

from mixmo import library, sweeps
from mixmo.cli.main import main
from mixmo.comparing import compare
from mixmo.errors import InputError
from mixmo.runs import RunFolder
from mixmo.sweeps import SweepRunner, load_sweep

SMALL = {"data": {"images_per_class": 10, "validation": 0.2}, "trainer": {"max_epochs": 2}, "model": {"compile": False}}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a sweep's file into an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write(section, **recipe):
        file = tmp_path / "some.yaml"
        file.write_text(
            yaml.safe_dump({"extends": "digits-cut"} | SMALL | recipe | {"sweep": section}, sort_keys=False)
        )
        return file

    return write


def train(trials, folder):
    runner = SweepRunner(trials, folder)
    runner.train()
    return runner


def status(folder):
    with (folder / "trials.csv").open() as file:
        return {row["trial"]: row["status"] for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_sweep_compares_what_it_has_trained(write, tmp_path, capsys):
    file = write({"grid": {"mixer.alpha": [1, 4]}, "seeds": [0, 1]})
    assert main(["sweep", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "4 finished" in shown and "Selected on validation data: alpha-" in shown and "n = 2" in shown
    page = (tmp_path / "runs/some/comparison/comparison.html").read_text()
    assert "alpha-1" in page and "alpha-4" in page
    (winner,) = set(re.findall(r"Selected on validation data: (\S+),", page + shown))
    (lead,) = re.findall('<p class="lead">(.*?)</p>', page)
    assert lead.startswith(f"{winner}, the best on validation data, classifies ") and lead.count("the best") == 1
    assert "Student&#39;s over seeds" in page and "over test images)" not in page


@pytest.mark.slow
def test_a_sweep_over_folds_compares_them_in_pairs(write, tmp_path, capsys):
    file = write({"grid": {"mixer.alpha": [1, 4]}, "folds": 2})
    assert main(["sweep", str(file)]) == 0
    assert "4 finished" in (shown := capsys.readouterr().out) and "n = 2" in shown and "over n folds" in shown
    page = (tmp_path / "runs/some/comparison/comparison.html").read_text()
    assert "Student&#39;s over folds, paired" in page and "1437 test images" in page and "of the first fold" in page
    rows = list(csv.DictReader((tmp_path / "runs/some/trials.csv").open()))
    assert [row["data.fold"] for row in rows] == ["0", "0", "1", "1"]
    one, two = (tmp_path / "runs/some" / name for name in ("alpha-1", "alpha-4"))
    found = compare(one, two)
    values = [[row["accuracy"] for row in found.table if row["group"] == each.name] for each in (one, two)]
    gain, low, high = found.differences["alpha-4"]["accuracy"]
    assert gain == pytest.approx(np.mean(values[1]) - np.mean(values[0])) and low < gain < high
    with pytest.raises(InputError, match="were tested on different images"):
        compare(one / "seed-0_fold-0", two / "seed-0_fold-1")
    shutil.copytree(two / "seed-0_fold-0", tmp_path / "half/fold-0")
    with pytest.raises(InputError, match=r"half was tested on folds \[0\], but alpha-1 on \[0, 1\]"):
        compare(one, tmp_path / "half")


def test_a_trial_is_what_fit_trains(write, tmp_path):
    train(load_sweep(write({"grid": {"mixer.alpha": [4]}, "seeds": [1]})), tmp_path / "out")
    words = ["--mixer.alpha=4", "--seed=1", "--data.split_seed=0", "--data.images_per_class=10"]
    words += ["--data.validation=0.2", "--trainer.max_epochs=2", "--model.compile=false", "--run=alone"]
    assert main(["fit", "digits-cut", *words]) == 0
    assert differences(RunFolder("out/alpha-4/seed-1"), RunFolder("alone")) == []


def test_what_is_trained_is_not_trained_again(write, tmp_path, monkeypatch):
    file = write({"grid": {"mixer.alpha": [1, 4]}})
    train(load_sweep(file), tmp_path / "out")
    before = (tmp_path / "out/trials.csv").read_text()
    monkeypatch.setattr(library, "train_run", lambda *_, **__: pytest.fail("nothing is left to train"))
    train(load_sweep(file), tmp_path / "out")
    assert (
        set(status(tmp_path / "out").values()) == {"finished"} and (tmp_path / "out/trials.csv").read_text() == before
    )


def test_a_stopped_sweep_is_resumed_to_the_same(write, tmp_path, monkeypatch, capsys):
    file = write({"grid": {"mixer.alpha": [1, 4]}})
    train(load_sweep(file), tmp_path / "whole")
    train_plan = sweeps.train_plan

    def train_and_stop(plan, place, resume):
        return train_plan(
            plan, place, resume, callbacks=[Ask(6, signal.SIGTERM)] if "alpha-4" in str(place.path) else []
        )

    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "train_plan", train_and_stop)
        assert main(["sweep", str(file), "--out=broken"]) == 128 + signal.SIGTERM
    assert "the same command resumes the sweep" in capsys.readouterr().err
    assert status(tmp_path / "broken") == {"alpha-1/seed-0": "finished", "alpha-4/seed-0": "waiting"}
    runner = SweepRunner(load_sweep(file), tmp_path / "broken")
    assert runner.counts() == "1 finished, 1 begun"
    runner.train()
    for name in ("alpha-1", "alpha-4"):
        assert differences(*(RunFolder(tmp_path / folder / name / "seed-0") for folder in ("whole", "broken"))) == []


def test_processes_share_a_sweep(write, tmp_path):
    """A trial that another process is training is skipped."""
    file = write({"grid": {"mixer.alpha": [1, 4]}})
    with RunFolder(tmp_path / "out/alpha-1/seed-0").lock():
        train(load_sweep(file), tmp_path / "out")
        assert status(tmp_path / "out") == {"alpha-1/seed-0": "waiting", "alpha-4/seed-0": "finished"}
    runner = train(load_sweep(file), tmp_path / "out")
    assert runner.counts() == "2 finished" and [group.name for group in runner.groups()] == ["alpha-1", "alpha-4"]


def test_a_trial_that_fails_does_not_keep_the_others(write, tmp_path, capsys):
    file = write({"grid": {"optimizer.lr": [1e30, 0.01]}})
    assert main(["sweep", str(file)]) == 1
    found = status(tmp_path / "runs/some")
    assert sorted(found.values()) == ["failed", "finished"]
    assert "failed: " in (shown := capsys.readouterr().out) and "not finite" in shown
    assert (tmp_path / "runs/some/comparison/comparison.html").is_file()


def test_a_folder_of_other_settings_is_refused(write, tmp_path):
    train(load_sweep(write({"seeds": [0]})), tmp_path / "out")
    with pytest.raises(InputError, match=r"have changed since it began: mixer.alpha is 3\.0, and was 2\.0"):
        train(load_sweep(write({"seeds": [0]}, mixer={"alpha": 3})), tmp_path / "out")


def test_trained_trials_of_other_images_or_precision_are_refused(write, tmp_path):
    for count in (12, 13):
        write_images(tmp_path / str(count), count=count)
    own = {"channels": 3, "batch_size": 8, "validation": 0.2}
    sets = [own | {"name": f"folder:{tmp_path}/{count}"} for count in (12, 13)]
    trainer = SMALL["trainer"] | {"precision": None}
    train(load_sweep(write({"seeds": [0]}, data=sets[0], trainer=trainer)), tmp_path / "out")
    errors = train(load_sweep(write({"seeds": [0, 1]}, data=sets[1], trainer=trainer)), tmp_path / "out").errors
    assert list(errors) == ["some/seed-0"] and "the training data has changed since" in errors["some/seed-0"]
    trained = RunFolder(tmp_path / "out/some/seed-0").resolved()["trainer"]["precision"]
    other = "32-true" if trained == "bf16-mixed" else "bf16-mixed"
    trainer["precision"] = other
    with pytest.raises(InputError, match=f"trainer.precision is {other!r}, and was {trained!r}"):
        train(load_sweep(write({"seeds": [0]}, data=sets[0], trainer=trainer)), tmp_path / "out")


def test_a_trial_that_has_begun_keeps_its_number_of_epochs(write, tmp_path):
    """Its learning rate has followed them, so it would differ from a new one; a failed start may be repeated."""
    train(load_sweep(write({"seeds": [0]})), tmp_path / "out")
    longer = load_sweep(write({"seeds": [0]}, trainer={"max_epochs": 3}))
    with pytest.raises(InputError, match=r"trainer.max_epochs is 3, and was 2\. Change them back, or .* with --out\."):
        SweepRunner(longer, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/some/seed-0/checkpoints")
    SweepRunner(longer, tmp_path / "out")


def test_a_trial_that_ended_early_is_finished(write, tmp_path, capsys):
    """With a learning rate that learns nothing; trained once, and compared."""
    trainer = {"max_epochs": 9, "limit_train_batches": 2, "patience": 1}
    file = write({"seeds": [0]}, trainer=trainer, optimizer={"lr": 1e-9})
    assert main(["sweep", str(file)]) == 0
    rows = len(RunFolder("runs/some/some/seed-0").read_metrics())
    assert "1 finished" in capsys.readouterr().out and rows < 9
    assert (tmp_path / "runs/some/comparison/comparison.html").is_file()
    file = write({"seeds": [0]}, trainer=trainer | {"patience": 9}, optimizer={"lr": 1e-9})
    assert SweepRunner(load_sweep(file), tmp_path / "runs/some").counts() == "1 begun"


def test_a_damaged_trial_does_not_keep_the_others(write, tmp_path, capsys):
    file = write({"grid": {"mixer.alpha": [1, 4]}})
    train(load_sweep(write({"grid": {"mixer.alpha": [1]}})), tmp_path / "out")
    with (tmp_path / "out/alpha-1/seed-0/metrics.csv").open("a") as metrics:
        metrics.write("garbage,x\n")
    file = write({"grid": {"mixer.alpha": [1, 4]}})
    assert main(["sweep", str(file), "--out=out"]) == 1
    assert status(tmp_path / "out") == {"alpha-1/seed-0": "failed", "alpha-4/seed-0": "finished"}
    assert "alpha-1/seed-0 failed: " in (shown := capsys.readouterr().out) and "metrics.csv is damaged" in shown


def test_seeds_that_the_file_lists_no_longer_are_not_compared(write, tmp_path, capsys):
    train(load_sweep(write({"seeds": [0, 1]})), tmp_path / "out")
    assert main(["sweep", str(write({"seeds": [0]})), "--out=out"]) == 0
    assert "n = 2" not in (shown := capsys.readouterr().out) and "Accuracy" in shown
    page = (tmp_path / "out/comparison/comparison.html").read_text()
    assert "Selected on validation data: some" in page and "seed-1" not in page


@pytest.mark.parametrize(("name", "problem"), [("config.yaml", "is a run's folder"), ("trials.csv", "is not a table")])
def test_a_folder_of_something_else_is_refused(write, tmp_path, capsys, name, problem):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("trial,mine\n")
    assert main(["sweep", str(write({"seeds": [0]})), "--out=out"]) == 2
    assert problem in capsys.readouterr().err and (tmp_path / "out" / name).read_text() == "trial,mine\n"


@pytest.mark.parametrize(
    ("word", "problem"),
    [("--out=", "out is ''; it must not be empty"), ("--ray=false", "unknown option '--ray'")],
)
def test_wrong_options_are_one_sentence(write, tmp_path, capsys, word, problem):
    assert main(["sweep", str(write({"seeds": [0]})), word]) == 2
    assert problem in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_the_command_alone(capsys):
    assert main(["sweep"]) == 2
    assert main(["sweep", "--help"]) == 0
    assert "--out" in capsys.readouterr().out
