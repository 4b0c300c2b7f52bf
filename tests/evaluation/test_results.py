"""``mixmo test``: figures of runs, ensembles of runs, strangers, and other programs' predictions."""

import errno
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import moved, write_images
from safetensors.torch import load_file

import mixmo
from mixmo.cli.main import main
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.errors import InputError, MissingError
from mixmo.evaluation import predictions
from mixmo.evaluation.predictions import predict
from mixmo.metrics import fit_temperature
from mixmo.metrics.ood import ood_scores
from mixmo.reporting.comparison_page import compare
from mixmo.reporting.testing import judge, judge_file
from mixmo.runs import Run
from mixmo.training.fit import fit


def kept(run, dataset):
    return load_file(run.path / "predictions" / f"{dataset}-last-32-true.safetensors")


def test_a_second_call_costs_nothing(trained, monkeypatch):
    _, run, _ = trained
    first = judge(run)
    monkeypatch.setattr(predictions, "load_checkpoint", None)  # neither network nor images are opened again
    monkeypatch.setattr(predictions, "load_test_images", None)
    assert judge(run) == pytest.approx(first, nan_ok=True)
    assert kept(run, "test")["logits"].shape == (12, 2, 3)


def test_kept_predictions_of_another_checkpoint_are_made_anew(trained, another_seed, tmp_path):
    folder, run, _ = trained
    run = moved(run, folder, tmp_path)
    judge(run)
    file = run.path / "predictions" / "test-last-32-true.safetensors"
    whole = file.read_bytes()
    checkpoint = run.checkpoint_file()
    original = checkpoint.read_bytes()
    shutil.copy(another_seed.checkpoint_file(), checkpoint)
    judge(run)
    assert file.read_bytes() != whole
    checkpoint.write_bytes(original)
    file.write_bytes(whole[:100])  # damaged: made anew as well
    judge(run)
    assert file.read_bytes() == whole


def replace_pictures(folder):
    shutil.rmtree(folder / "test")
    write_images(folder / "test", count=4, seed=9)


def test_replaced_pictures_are_predicted_anew(trained, tmp_path):
    folder, run, _ = trained
    run = moved(run, folder, tmp_path)
    before = predict(run).logits
    replace_pictures(tmp_path / "data")
    after = predict(run).logits
    assert not torch.equal(after, before)
    shutil.rmtree(run.path / "predictions")
    assert torch.equal(predict(run).logits, after)


def test_replaced_training_pictures_are_predicted_anew(trained, tmp_path):
    folder, run, _ = trained
    run = moved(run, folder, tmp_path)
    before = predict(run, "validation").logits
    shutil.rmtree(tmp_path / "data" / "train")
    write_images(tmp_path / "data" / "train", count=12, seed=9)
    assert not torch.equal(predict(run, "validation").logits, before)


def test_replaced_pictures_of_another_dataset_are_predicted_anew(trained, tmp_path):
    folder, run, _ = trained
    shutil.copytree(folder / "strangers", tmp_path / "strangers")
    name = f"folder:{tmp_path}/strangers"
    before = predict(run, name).logits
    replace_pictures(tmp_path / "strangers")
    assert predict(run, name).logits.shape != before.shape


def test_another_canvas_is_predicted_anew(trained, tmp_path):
    """Other datasets are brought to the size of the run's own pictures."""
    folder, run, _ = trained
    run = moved(run, folder, tmp_path)
    name = f"folder:{folder}/strangers"
    before = predict(run, name).logits
    shutil.rmtree(tmp_path / "data" / "test")
    write_images(tmp_path / "data" / "test", count=4, size=12, seed=1)
    assert not torch.equal(predict(run, name).logits, before)


def test_predictions_without_their_pictures_are_missing(trained, tmp_path):
    folder, run, _ = trained
    run = moved(run, folder, tmp_path)
    predict(run)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(MissingError, match="there is no dataset folder"):
        predict(run)


@pytest.fixture
def computed(monkeypatch):
    """The datasets for which a network was asked anew."""
    honest, asked = predictions._computed, []

    def counted(run, dataset, *rest):
        asked.append(dataset)
        return honest(run, dataset, *rest)

    monkeypatch.setattr(predictions, "_computed", counted)
    return asked


def test_predictions_of_another_version_are_made_anew(trained, monkeypatch, computed):
    _, run, _ = trained
    predict(run)
    computed.clear()
    monkeypatch.setattr(predictions, "__version__", "0.0.7")
    predict(run)
    predict(run)
    assert computed == ["test"]


@pytest.mark.parametrize("command", ["test", "compare"])
def test_refresh_predicts_anew(trained, tmp_path, command, computed, monkeypatch):
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
    honest, allowed = predictions.load_checkpoint, []

    def counted(run, which="last", download=False):
        allowed.append(download)
        return honest(run, which)

    monkeypatch.setattr(predictions, "load_checkpoint", counted)
    for word in ([], ["--download"]):
        allowed.clear()
        assert main([command, str(run.path), "--refresh", *word]) == 0
        assert set(allowed) == {bool(word)}


def test_a_flipped_sign_in_kept_predictions_is_noticed(trained, caplog):
    _, run, _ = trained
    expected = predict(run).logits
    file = run.path / "predictions" / "test-last-32-true.safetensors"
    content = bytearray(file.read_bytes())
    content[file.read_bytes().index(expected.numpy().tobytes()) + 3] ^= 0x80
    file.write_bytes(content)
    assert torch.equal(predict(run).logits, expected)
    (warning,) = caplog.records
    assert warning.getMessage() == f"{file} is damaged or of an earlier version; it is made anew."
    assert torch.equal(kept(run, "test")["logits"], expected)


def test_long_names_of_datasets_have_files_of_their_own(trained, tmp_path):
    _, run, _ = trained
    folders = [tmp_path / ("x" * 200) / ("y" * 200) / end for end in ("a b", "a-b")]
    for seed, folder in enumerate(folders):
        write_images(folder / "train", size=8)
        write_images(folder / "test", size=8, seed=seed)
    before = set((run.path / "predictions").iterdir())
    for folder in folders:
        predict(run, f"folder:{folder}")
    assert len(set((run.path / "predictions").iterdir()) - before) == 2


@pytest.fixture
def full_disk(monkeypatch):
    """Nothing more can be written from now on."""

    def full():
        def refuse(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", refuse)

    return full


def test_a_full_disk_costs_no_figures(trained, tmp_path, full_disk, capsys, caplog):
    """Tables are shown first; what was there before stays."""
    folder, run, _ = trained
    run = moved(run, folder, tmp_path)
    (run.path / "test.json").write_text("before")
    full_disk()
    with pytest.raises(InputError, match=r"test\.json cannot be written: No space left on device"):
        judge(run)
    assert "ensemble, logit average" in capsys.readouterr().out
    assert (run.path / "test.json").read_text() == "before"
    assert [text.partition(": ")[2] for text in caplog.messages] == [
        "No space left on device. It is not kept for a second call."
    ] * 2  # predictions on the test and on the validation set
    assert not list(run.path.rglob("*.partial"))


def test_a_run_in_a_read_only_folder(trained, tmp_path, monkeypatch, capsys):
    folder, run, _ = trained
    run = moved(run, folder, tmp_path)
    honest = Path.open

    def refuse(path, mode="r", *rest, **options):
        if path.is_relative_to(run.path) and mode.startswith(("w", "x", "a")):
            raise OSError(errno.EROFS, "Read-only file system")
        return honest(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"test\.json cannot be written: Read-only file system"):
        judge(run)
    assert "ensemble, logit average" in capsys.readouterr().out
    compare([run.path], tmp_path / "out")
    assert (tmp_path / "out" / "comparison.html").is_file()


def test_the_temperature_is_that_of_the_validation_set(trained):
    _, run, _ = trained
    figures = judge(run)
    validation, test = kept(run, "validation"), kept(run, "test")
    temperature = fit_temperature(validation["logits"].mean(1), validation["targets"])
    assert figures["temperature"] == pytest.approx(temperature)
    scaled = test["logits"].mean(1).double() / temperature
    assert figures["nll_scaled"] == pytest.approx(torch.nn.functional.cross_entropy(scaled, test["targets"]).item())


def test_several_runs_are_one_ensemble(trained, capsys):
    _, two, one = trained
    figures = judge(two, one)
    logits = torch.cat([kept(two, "test")["logits"], kept(one, "test")["logits"]], 1)
    assert logits.shape[1] == 3
    expected = mixmo.evaluate(logits, kept(one, "test")["targets"])
    assert figures == pytest.approx(expected, nan_ok=True)
    assert "two + one: 12 test images" in capsys.readouterr().out


def test_strangers_and_classes(trained, capsys):
    folder, run, _ = trained
    name = f"folder:{folder}/strangers"
    assert main(["test", str(run.path), "--ood", name, "--per_class=true"]) == 0
    out = capsys.readouterr().out
    assert "out of distribution" in out and "mutual information" in out and "by class" in out
    stored = json.loads((run.path / "test.json").read_text())
    known, strange = (ood_scores(each.logits)["entropy"].numpy() for each in (predict(run), predict(run, name)))
    wins = (strange[:, None] > known).mean() + (strange[:, None] == known).mean() / 2
    assert stored[f"ood/{name}/entropy/auroc"] == pytest.approx(wins)
    by_class = stored["per_class"]
    assert {name: own["images"] for name, own in by_class.items()} == {"cat": 4, "dog": 4, "emu": 4}
    assert np.mean([own["accuracy"] for own in by_class.values()]) == pytest.approx(stored["accuracy"])
    assert stored["about"]["conventions"]["ood"] == "the other dataset is the positive class"
    assert stored["about"]["precision"] == "32-true"


def test_awkward_names_of_classes(tmp_path, capsys):
    names = ["$x^{$", "\x1b[31m", "[red]<script>|"]
    np.savez(tmp_path / "theirs.npz", logits=np.eye(3), targets=np.arange(3), classes=names)
    judge_file(tmp_path / "theirs.npz", per_class=True)
    out = capsys.readouterr().out
    for shown in ("$x^{$", "\\x1b[31m", "[red]<script>|"):
        assert f"{shown} " in out
    assert "\x1b" not in out


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_other_programs_predictions_are_judged_alike(tmp_path, capsys, kind, members):
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((20, members, 4)).astype(np.float32), rng.integers(0, 4, 20)
    shown = logits if kind == "logits" else torch.from_numpy(logits).softmax(2).numpy()
    np.savez(tmp_path / "theirs.npz", targets=targets, **{kind: shown if members > 1 else shown[:, 0]})
    figures = judge_file(tmp_path / "theirs.npz")
    expected = mixmo.evaluate(torch.from_numpy(logits).double().log_softmax(2), torch.from_numpy(targets))
    for key in ("accuracy", "nll", "brier", "ece", "probability_average/nll", "member_0/aurc"):
        assert figures[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key
    assert main(["test", "--predictions", str(tmp_path / "theirs.npz")]) == 0
    assert "theirs.npz: 20 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": np.zeros((2, 3))}, "holds logits; it needs targets"),
        ({"targets": np.zeros(2, int)}, "holds targets; it needs targets, and logits or probabilities"),
        ({"targets": np.zeros(2, int), "logits": np.zeros(2)}, "of shape (2,)"),
        ({"targets": np.zeros(2, int), "probabilities": np.ones((2, 3))}, "row 0 sum to 3"),
        ({"targets": np.full(2, 7), "logits": np.zeros((2, 3))}, "target 7 in row 0"),
        ({"targets": np.zeros(2), "logits": np.zeros((2, 3))}, "has targets of float64"),
        ({"targets": np.zeros(2, int), "logits": np.array([["a"]])}, "<U1; they are (N, K)"),
        (
            {"targets": np.zeros(2, int), "logits": np.zeros((2, 3)), "classes": ["a"]},
            "has classes of shape (1,), <U1; they are 3 names",
        ),
    ],
)
def test_bad_predictions_are_one_sentence(tmp_path, capsys, arrays, message):
    np.savez(tmp_path / "theirs.npz", **arrays)
    assert main(["test", "--predictions", str(tmp_path / "theirs.npz")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("mixmo: ")
    assert message in error


def test_bad_words_are_one_sentence(trained, tmp_path, capsys):
    _, run, _ = trained
    write_images(tmp_path / "data" / "train")
    write_images(tmp_path / "data" / "test", count=2)
    other = Run(tmp_path / "other")
    words = [f"--data.name=folder:{tmp_path}/data", "--data.batch_size=8", "--data.padding=1", "--data.channels=3"]
    words += ["--data.image_size=null", "--data.validation=0", "--trainer.max_epochs=1"]
    fit(make_plan(load_recipe("quickstart"), words), other)
    (tmp_path / "broken.npz").write_bytes(b"broken")
    np.savez(tmp_path / "whole.npz", logits=np.zeros((2, 3)), targets=np.zeros(2, int))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for arguments, message in {
        (): "test needs a run's folder",
        (str(run.path), "--predictions=x.npz"): "test needs a run's folder",
        ("--predictions=nowhere.npz",): "there is no file nowhere.npz",
        (f"--predictions={tmp_path}/broken.npz",): "cannot be read as an .npz file",
        (str(run.path), "--ood", "folder:nowhere"): "there is no dataset folder nowhere",
        (str(run.path), str(other.path)): "were tested on different images or classes",
        (str(run.path), "--precision=16"): "unknown precision '16'",
        (f"--predictions={tmp_path}/broken.npz", "--ood", "digits"): "--ood asks for a run",
        (f"--predictions={tmp_path}/cut.npz",): "cannot be read as an .npz file",
        (f"--predictions={tmp_path}/array.npz",): "cannot be read as an .npz file",
    }.items():
        assert main(["test", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_what_is_not_defined_is_null_in_the_file(tmp_path):
    run = Run(tmp_path)
    run.write_json("test.json", {"a": math.nan, "b": 1.0, "c": {"d": [math.nan]}})
    assert json.loads((tmp_path / "test.json").read_text()) == {"a": None, "b": 1.0, "c": {"d": [None]}}


def test_half_precision_probabilities_are_read(tmp_path):
    """Rows of 100 rounded numbers sum to one within what 16 bits allow."""
    probabilities = torch.randn(200, 100).softmax(1).half().numpy()
    np.savez(tmp_path / "half.npz", probabilities=probabilities, targets=np.zeros(200, int))
    assert predictions.read_predictions(tmp_path / "half.npz").logits.shape == (200, 1, 100)
