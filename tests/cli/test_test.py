"""``mixmo test``: tables first, then files; one message for bad input and for files that cannot be written."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import copy_run, write_images

import mixmo
from mixmo.cli.main import main
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.evaluation import inference, robustness
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import predict
from mixmo.evaluation.results import evaluate_predictions
from mixmo.metrics.ood import ood_scores
from mixmo.runs import RunFolder
from mixmo.training.fit import fit


@pytest.mark.parametrize("command", ["test", "compare"])
def test_refresh_predicts_again(trained, tmp_path, command, computed, monkeypatch):
    _, _, run = trained
    monkeypatch.chdir(tmp_path)
    assert main([command, str(run.path)]) == 0
    computed.clear()
    assert main([command, str(run.path)]) == 0
    assert computed == []
    assert main([command, str(run.path), "--refresh"]) == 0
    assert computed == ["test", "validation"]


@pytest.mark.parametrize("command", ["test", "compare"])
def test_downloads_have_to_be_asked_for(trained, tmp_path, command, monkeypatch):
    _, _, run = trained
    monkeypatch.chdir(tmp_path)
    honest, allowed = inference.load_checkpoint, []

    def counted(run, which="last", download=False, module=None):
        allowed.append(download)
        return honest(run, which)

    monkeypatch.setattr(inference, "load_checkpoint", counted)
    for word in ([], ["--download"]):
        allowed.clear()
        assert main([command, str(run.path), "--refresh", *word]) == 0
        assert set(allowed) == {bool(word)}


@pytest.fixture
def full_disk(monkeypatch):
    """Let all further writes fail."""

    def full():
        def refuse(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", refuse)

    return full


def test_a_full_disk_costs_no_metrics(trained, tmp_path, full_disk, capsys):
    """Tables are printed first; existing files are unchanged."""
    folder, run, _ = trained
    run = copy_run(run, folder, tmp_path)
    (run.path / "test.json").write_text("before")
    full_disk()
    assert main(["test", str(run.path)]) == 2
    out, error = capsys.readouterr()
    assert "ensemble, logit average" in out
    assert error.splitlines()[-1].endswith("test.json cannot be written: No space left on device.")
    assert (run.path / "test.json").read_text() == "before"
    kept = [line for line in error.splitlines() if "No space left on device. The result is not cached." in line]
    assert len(kept) == 4  # predictions on test and validation set, the calibration, how separate the members are
    assert not list(run.path.rglob("*.partial"))


def test_a_run_in_a_read_only_folder(trained, tmp_path, monkeypatch, capsys):
    folder, run, _ = trained
    run = copy_run(run, folder, tmp_path)
    honest = Path.open

    def refuse(path, mode="r", *rest, **options):
        if path.is_relative_to(run.path) and mode.startswith(("w", "x", "a")):
            raise OSError(errno.EROFS, "Read-only file system")
        return honest(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert main(["test", str(run.path)]) == 2
    out, error = capsys.readouterr()
    assert "ensemble, logit average" in out
    assert error.splitlines()[-1].endswith("test.json cannot be written: Read-only file system.")
    assert main(["compare", str(run.path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "comparison.html").is_file()


def test_ood_datasets_and_classes(trained, capsys):
    folder, run, _ = trained
    name = f"folder:{folder}/other"
    assert main(["test", str(run.path), "--ood", name, "--per_class=true"]) == 0
    out = capsys.readouterr().out
    assert "out-of-distribution" in out and "Mutual information" in out and "by class" in out
    assert "Conformal sets" in out and "The temperature is uncertain" in out  # of nine validation images
    assert "The temperature is uncertain" in (run.path / "report.html").read_text()
    stored = json.loads((run.path / "test.json").read_text())
    both = (predict(TrainedRun(run)), predict(TrainedRun(run), name))
    known, other = (ood_scores(each.logits)["entropy"].numpy() for each in both)
    wins = (other[:, None] > known).mean() + (other[:, None] == known).mean() / 2
    assert stored[f"ood/{name}/entropy/auroc"] == pytest.approx(wins)
    by_class = stored["per_class"]
    assert {name: own["images"] for name, own in by_class.items()} == {"cat": 4, "dog": 4, "emu": 4}
    assert np.mean([own["accuracy"] for own in by_class.values()]) == pytest.approx(stored["accuracy"])
    assert stored["about"]["conventions"]["ood"] == "the other dataset is the positive class"
    assert stored["about"]["precision"] == "32-true"


def test_awkward_names_of_classes_are_shown(tmp_path, capsys):
    names = ["$x^{$", "\x1b[31m", "[red]<script>|"]
    np.savez(tmp_path / "theirs.npz", logits=np.eye(3), targets=np.arange(3), classes=names)
    assert main(["test", "--predictions", str(tmp_path / "theirs.npz"), "--per_class=true"]) == 0
    out = capsys.readouterr().out
    for shown in ("$x^{$", "\\x1b[31m", "[red]<script>|"):
        assert f"{shown} " in out
    assert "\x1b" not in out


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_other_programs_predictions_are_evaluated_alike(tmp_path, capsys, kind, members):
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((20, members, 4)).astype(np.float32), rng.integers(0, 4, 20)
    shown = logits if kind == "logits" else torch.from_numpy(logits).softmax(2).numpy()
    np.savez(tmp_path / "theirs.npz", targets=targets, **{kind: shown if members > 1 else shown[:, 0]})
    metrics = evaluate_predictions(tmp_path / "theirs.npz").flat()
    expected = mixmo.evaluate(torch.from_numpy(logits).double().log_softmax(2), torch.from_numpy(targets))
    for key in ("accuracy", "nll", "brier", "ece", "probability_average/nll", "member_0/aurc"):
        assert metrics[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key
    assert main(["test", "--predictions", str(tmp_path / "theirs.npz")]) == 0
    assert "theirs.npz: 20 images" in capsys.readouterr().out


def test_bad_arguments_are_one_sentence(trained, tmp_path, capsys):
    _, run, _ = trained
    write_images(tmp_path / "data" / "train")
    write_images(tmp_path / "data" / "test", count=2)
    other = RunFolder(tmp_path / "other")
    words = [f"--data.name=folder:{tmp_path}/data", "--data.batch_size=8", "--data.padding=1", "--data.channels=3"]
    words += ["--data.image_size=null", "--data.validation=0", "--trainer.max_epochs=1"]
    fit(make_plan(load_recipe("digits-cut"), words), other)
    (tmp_path / "broken.npz").write_bytes(b"broken")
    np.savez(tmp_path / "whole.npz", logits=np.zeros((2, 3)), targets=np.zeros(2, int))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for arguments, message in {
        (): "test needs either folders of runs",
        (str(run.path), "--predictions=x.npz"): "test needs either folders of runs",
        ("--predictions=nowhere.npz",): "there is no file nowhere.npz",
        (f"--predictions={tmp_path}/broken.npz",): "cannot be read as an .npz file",
        (str(run.path), "--ood", "folder:nowhere"): "there is no dataset folder nowhere",
        (str(run.path), str(other.path)): "were tested on different images or classes",
        (str(run.path), "--precision=16"): "unknown precision '16'",
        (f"--predictions={tmp_path}/broken.npz", "--ood", "digits"): "--ood needs a run",
        (f"--predictions={tmp_path}/cut.npz",): "cannot be read as an .npz file",
        (f"--predictions={tmp_path}/array.npz",): "cannot be read as an .npz file",
    }.items():
        assert main(["test", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_several_runs_are_shown_and_not_written(trained, tmp_path, capsys):
    """An ensemble has no folder."""
    folder, two, one = trained
    copies = [copy_run(two, folder, tmp_path / "a"), copy_run(one, folder, tmp_path / "b")]
    assert main(["test", *(str(run.path) for run in (two, one))]) == 0
    out = capsys.readouterr().out
    assert "two + one: 12 test images" in out and "test.json" not in out
    assert not any((run.path / "test.json").exists() for run in copies)


@pytest.mark.slow
def test_a_later_call_keeps_what_an_earlier_one_found_of_the_same_checkpoint(trained, tmp_path, monkeypatch):
    """In test.json and on the page; newer figures replace those with the same key, another checkpoint replaces all."""
    folder, run, _ = trained
    run, name = copy_run(run, folder, tmp_path), f"folder:{folder}/other"
    monkeypatch.setattr(robustness, "KINDS", {"fog": robustness.KINDS["fog"]})
    assert main(["test", str(run.path), "--corruptions", "--per_class"]) == 0
    first = json.loads((run.path / "test.json").read_text())
    assert main(["test", str(run.path), "--ood", name]) == 0
    both = json.loads((run.path / "test.json").read_text())
    assert both["about"] == first["about"] | {"ood": [name]}
    assert {key: both[key] for key in first} == first | {"about": both["about"]} and f"ood/{name}/energy/auroc" in both
    assert main(["test", str(run.path)]) == 0
    assert json.loads((run.path / "test.json").read_text()) == both
    page = (run.path / "report.html").read_text()
    assert "<h2>Corruptions</h2>" in page and "<h2>Out-of-distribution images</h2>" in page
    write_images(tmp_path / "other" / "test", classes=("x", "y"), size=20, seed=7)
    assert main(["test", str(run.path), "--ood", f"folder:{tmp_path}/other"]) == 0
    assert len(json.loads((run.path / "test.json").read_text())) == len(both) + 12
    changed = both | {"corruption/nll": -1.0, "corruptions": both["corruptions"] | {"source": "older"}, "nll": -1.0}
    (run.path / "test.json").write_text(json.dumps(changed))
    assert main(["test", str(run.path), "--corruptions"]) == 0
    assert json.loads((run.path / "test.json").read_text()) == both
    for damage in ({"about": both["about"] | {"digest": "0"}}, {"corruptions": [], "per_class": 3}):
        (run.path / "test.json").write_text(json.dumps(both | damage))
        assert main(["test", str(run.path)]) == 0
        assert (
            not {"corruptions", "per_class", f"ood/{name}/energy/auroc"}
            & json.loads((run.path / "test.json").read_text()).keys()
        )
