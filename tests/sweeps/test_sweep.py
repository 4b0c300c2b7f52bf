"""Sweeps from start to end: one trial after the other, stopped and gone on with, raced, and compared."""

import csv
import io
import math
import re
import signal

import numpy as np
import pytest
import yaml
from killing import Ask, differences
from rich.console import Console

from mixmo.cli.main import main
from mixmo.errors import InputError
from mixmo.runs import RunFolder
from mixmo.sweeps import on_ray, run, trial
from mixmo.sweeps.grid import load_sweep
from mixmo.sweeps.halving import Halving
from mixmo.sweeps.progress import Progress
from mixmo.sweeps.run import compared, run_sweep
from mixmo.sweeps.settings import Asha

SMALL = {"data": {"images_per_class": 10, "validation": 0.2}, "trainer": {"max_epochs": 2}, "model": {"compile": False}}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a sweep's file, in an empty folder that is the present one."""
    monkeypatch.chdir(tmp_path)

    def write(section, **recipe):
        file = tmp_path / "some.yaml"
        file.write_text(
            yaml.safe_dump({"extends": "digits-cut"} | SMALL | recipe | {"sweep": section}, sort_keys=False)
        )
        return file

    return write


def status(folder):
    with (folder / "trials.csv").open() as file:
        return {row["trial"]: row["status"] for row in csv.DictReader(file)}


def test_a_sweep_compares_what_it_has_trained(write, tmp_path, capsys):
    file = write({"grid": {"mixer.alpha": [1, 4]}, "seeds": [0, 1]})
    assert main(["sweep", str(file), "--ray", "false"]) == 0
    shown = capsys.readouterr().out
    assert "4 finished" in shown and "which alone may choose: alpha-" in shown and "n = 2" in shown
    page = (tmp_path / "runs/some/comparison/comparison.html").read_text()
    assert "alpha-1" in page and "alpha-4" in page
    (winner,) = set(re.findall(r"which alone may choose: (\S+),", page + shown))
    (lead,) = re.findall('<p class="lead">(.*?)</p>', page)
    assert lead.startswith(f"{winner}, the best on validation data, classifies ") and lead.count("the best") == 1
    assert "Student&#39;s over seeds" in page and "over test images)" not in page


def test_a_trial_is_what_fit_trains(write, tmp_path):
    run_sweep(load_sweep(write({"grid": {"mixer.alpha": [4]}, "seeds": [1]})), tmp_path / "out", ray=False)
    words = ["--mixer.alpha=4", "--seed=1", "--data.split_seed=0", "--data.images_per_class=10"]
    words += ["--data.validation=0.2", "--trainer.max_epochs=2", "--model.compile=false", "--run=alone"]
    assert main(["fit", "digits-cut", *words]) == 0
    assert differences(RunFolder("out/alpha-4/seed-1"), RunFolder("alone")) == []


def test_what_is_trained_is_not_trained_again(write, tmp_path, monkeypatch):
    file = write({"grid": {"mixer.alpha": [1, 4]}})
    before = run_sweep(load_sweep(file), tmp_path / "out", ray=False)
    monkeypatch.setattr(run, "run_in_turn", lambda *_: pytest.fail("nothing is left to train"))
    after = run_sweep(load_sweep(file), tmp_path / "out", ray=False)
    assert [state.rows for state in after.states.values()] == [state.rows for state in before.states.values()]
    assert set(status(tmp_path / "out").values()) == {"finished"}


def test_a_stopped_sweep_goes_on_to_the_same(write, tmp_path, monkeypatch, capsys):
    file = write({"grid": {"mixer.alpha": [1, 4]}})
    run_sweep(load_sweep(file), tmp_path / "whole", ray=False)
    fit = trial.fit

    def stopped(plan, place, resume, callbacks):
        ask = [Ask(6, signal.SIGTERM)] if "alpha-4" in str(place.path) else []
        fit(plan, place, resume, [*callbacks, *ask])

    with monkeypatch.context() as patch:
        patch.setattr(trial, "fit", stopped)
        assert main(["sweep", str(file), "--ray=false", "--out=broken"]) == 128 + signal.SIGTERM
    assert "the same command goes on" in capsys.readouterr().err
    assert status(tmp_path / "broken") == {"alpha-1/seed-0": "finished", "alpha-4/seed-0": "stopped"}
    run_sweep(load_sweep(file), tmp_path / "broken", ray=False)
    for name in ("alpha-1", "alpha-4"):
        assert differences(*(RunFolder(tmp_path / folder / name / "seed-0") for folder in ("whole", "broken"))) == []


def test_a_trial_that_fails_does_not_keep_the_others(write, tmp_path, capsys):
    file = write({"grid": {"optimizer.lr": [1e30, 0.01]}})
    assert main(["sweep", str(file), "--ray=false"]) == 1
    found = status(tmp_path / "runs/some")
    assert sorted(found.values()) == ["failed", "finished"]
    assert "failed: " in (shown := capsys.readouterr().out) and "not finite" in shown
    assert (tmp_path / "runs/some/comparison/comparison.html").is_file()


def test_a_folder_of_other_settings_is_refused(write, tmp_path):
    run_sweep(load_sweep(write({"seeds": [0]})), tmp_path / "out", ray=False)
    with pytest.raises(InputError, match=r"was trained with mixer.alpha 2\.0, and the sweep asks for 3\.0"):
        run_sweep(load_sweep(write({"seeds": [0]}, mixer={"alpha": 3})), tmp_path / "out", ray=False)


def test_the_race_stops_what_validates_badly_and_seeds_follow_the_rest(write, tmp_path):
    section = {
        "grid": {"optimizer.lr": [0.05, 1e-6, 2e-6]},
        "seeds": [0, 1],
        "asha": {"grace_epochs": 2, "reduction": 2},
    }
    file = write(section, trainer={"max_epochs": 8})
    progress = run_sweep(load_sweep(file), tmp_path / "out", ray=False)
    found = status(tmp_path / "out")
    assert found["lr-0.05/seed-0"] == found["lr-0.05/seed-1"] == "finished"
    assert found["lr-1e-06/seed-0"] == found["lr-2e-06/seed-0"] == "stopped early"
    assert found["lr-1e-06/seed-1"] == "left out" and not (tmp_path / "out/lr-1e-06/seed-1").exists()
    (seeds,) = compared(load_sweep(file), tmp_path / "out", progress)
    assert seeds.name == "lr-0.05" and [run.name for run in seeds.runs] == ["seed-0", "seed-1"]
    stopped = RunFolder(tmp_path / "out/lr-1e-06/seed-0")
    epochs = stopped.finished_epochs()
    assert epochs == len(stopped.read_metrics()) and epochs in (2, 4), "what is reported is kept"
    (tmp_path / "out" / "lr-0.05" / "seed-1" / "checkpoints" / "last.ckpt").unlink()
    (tmp_path / "out" / "lr-0.05" / "seed-1" / "checkpoints" / "previous.ckpt").rename(
        tmp_path / "out" / "lr-0.05" / "seed-1" / "checkpoints" / "last.ckpt"
    )
    again = run_sweep(load_sweep(file), tmp_path / "out", ray=False)
    assert {key: state.status for key, state in again.states.items()} == found
    assert stopped.finished_epochs() == epochs


def test_a_random_search_compares_the_best_on_validation_only(write, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "MOST_COMPARED", 2)
    file = write({"random": {"optimizer.lr": {"low": 1e-5, "high": 0.3, "log": True}}, "samples": 3})
    sweep = load_sweep(file)
    progress = run_sweep(sweep, tmp_path / "out", ray=False)
    scores = {
        name: float(RunFolder(tmp_path / f"out/{name}/seed-0").read_metrics()[-1]["val_accuracy"])
        for name in sweep.names
    }
    chosen = [seeds.name for seeds in compared(sweep, tmp_path / "out", progress)]
    assert chosen == sorted(scores, key=lambda name: -scores[name])[:2]


def test_halving_is_that_of_ray():
    schedulers = pytest.importorskip("ray.tune.schedulers.async_hyperband")
    rng = np.random.default_rng(0)
    for grace, reduction, epochs in [(1, 3, 20), (2, 2, 16), (1, 4, 5), (3, 2.5, 30)]:
        bracket = schedulers._Bracket(grace, epochs, reduction, 0)
        halving = Halving(Asha(grace, reduction), epochs)
        for number in range(30):
            for epoch, score in enumerate(rng.choice(12, epochs - 1) / 12, 1):
                theirs = bracket.on_result(type("Trial", (), {"trial_id": number}), epoch, score) == "CONTINUE"
                assert halving.goes_on(str(number), epoch, score) == theirs, (grace, reduction, number, epoch)
                if not theirs:
                    break


def test_a_damaged_trial_does_not_keep_the_others(write, tmp_path, capsys):
    file = write({"grid": {"mixer.alpha": [1, 4]}})
    run_sweep(load_sweep(write({"grid": {"mixer.alpha": [1]}})), tmp_path / "out", ray=False)
    with (tmp_path / "out/alpha-1/seed-0/metrics.csv").open("a") as metrics:
        metrics.write("garbage,x\n")
    file = write({"grid": {"mixer.alpha": [1, 4]}})
    assert main(["sweep", str(file), "--out=out", "--ray=false"]) == 1
    assert status(tmp_path / "out") == {"alpha-1/seed-0": "failed", "alpha-4/seed-0": "finished"}
    assert "alpha-1/seed-0 failed: " in (shown := capsys.readouterr().out) and "metrics.csv is damaged" in shown


def test_seeds_that_the_file_lists_no_longer_are_not_compared(write, tmp_path, capsys):
    run_sweep(load_sweep(write({"seeds": [0, 1]})), tmp_path / "out", ray=False)
    assert main(["sweep", str(write({"seeds": [0]})), "--out=out", "--ray=false"]) == 0
    assert "n = 2" not in (shown := capsys.readouterr().out) and "Accuracy" in shown
    page = (tmp_path / "out/comparison/comparison.html").read_text()
    assert "Best on validation data, which alone may choose: some" in page and "seed-1" not in page


def test_two_sweeps_on_one_folder(write, tmp_path, capsys):
    file = write({"seeds": [0]})
    with RunFolder(tmp_path / "out").locked():
        assert main(["sweep", str(file), "--out=out", "--ray=false"]) == 2
    assert "another process is training in out" in capsys.readouterr().err
    assert not (tmp_path / "out/trials.csv").exists()


@pytest.mark.parametrize(("name", "problem"), [("config.yaml", "is a run's folder"), ("trials.csv", "is no table of")])
def test_a_folder_of_something_else_is_refused(write, tmp_path, capsys, name, problem):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("trial,mine\n")
    assert main(["sweep", str(write({"seeds": [0]})), "--out=out"]) == 2
    assert problem in capsys.readouterr().err and (tmp_path / "out" / name).read_text() == "trial,mine\n"


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("--cpus=0", "cpus is 0; it must be at least 1"),
        ("--gpus=-1", "gpus is -1; it must be at least 0"),
        ("--gpus=1.5", "--gpus is 1.5"),
        ("--out=", "out is ''; it must not be empty"),
        ("--adress=x", "unknown option '--adress'"),
        ("--address=x", "and --ray is false"),
    ],
)
def test_wrong_options_are_one_sentence(write, tmp_path, capsys, word, problem):
    assert main(["sweep", str(write({"seeds": [0]})), "--ray=false", word]) == 2
    assert problem in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_the_command_alone(capsys):
    assert main(["sweep"]) == 2
    assert main(["sweep", "--help"]) == 0
    assert "--address" in capsys.readouterr().out


def test_the_table_shows_what_is_trained_and_then_the_best(write, tmp_path):
    progress = Progress(load_sweep(write({"grid": {"mixer.alpha": list(range(1, 31))}})), tmp_path)
    for number in range(1, 31):
        row = {"epoch": 1, "seconds": 60.0, "train_loss": 1.5, "val_accuracy": number / 100}
        progress.epoch(f"alpha-{number}/seed-0", row)
        if number != 5:
            progress.set(f"alpha-{number}/seed-0", "finished")
    console = Console(width=120, file=io.StringIO())
    console.print(progress.table())
    lines = [line for line in console.file.getvalue().splitlines() if "alpha-" in line]
    assert ["5/" in lines[0], "30/" in lines[1], "29/" in lines[2]] == [True] * 3 and len(lines) == 20
    assert "29 finished" in progress.counts() and math.isclose(progress.score("alpha-7"), 0.07)


@pytest.mark.parametrize("words", [["--address", "auto"], ["--ray", "true"]])
def test_without_ray_its_extra_is_named(write, monkeypatch, capsys, words):
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    assert main(["sweep", str(write({"seeds": [0]})), *words]) == 2
    assert "mixmo[ray]" in capsys.readouterr().err


def test_without_ray_trials_come_one_after_the_other(write, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    run_sweep(load_sweep(write({"seeds": [0]})), tmp_path / "out")
    assert set(status(tmp_path / "out").values()) == {"finished"}
