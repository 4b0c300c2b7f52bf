"""``mixmo test``: figures of runs, ensembles of runs, strangers, and other programs' predictions."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import write_images
from safetensors.torch import load_file

import mixmo
from mixmo import predictions
from mixmo.cli import main
from mixmo.fitting import fit
from mixmo.metrics import fit_temperature
from mixmo.plans import make_plan
from mixmo.recipes import load_recipe
from mixmo.runs import Run
from mixmo.testing import judge


def kept(run, dataset):
    return load_file(run.path / "predictions" / f"{dataset}-last-32-true.safetensors")


def test_a_second_call_costs_nothing(trained, monkeypatch):
    _, run, _ = trained
    first = judge(run)
    monkeypatch.setattr(predictions, "load_checkpoint", None)  # neither network nor images are opened again
    monkeypatch.setattr(predictions, "load_test_images", None)
    assert judge(run) == pytest.approx(first, nan_ok=True)
    assert kept(run, "test")["logits"].shape == (12, 2, 3)


def test_kept_predictions_of_another_checkpoint_are_made_anew(trained, tmp_path):
    _, run, _ = trained
    judge(run)
    file = run.path / "predictions" / "test-last-32-true.safetensors"
    whole = file.read_bytes()
    checkpoint = run.checkpoint_file()
    original = checkpoint.read_bytes()
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["net.backbone.fc.heads.0.bias"] += 5
    torch.save(content, checkpoint)
    judge(run)
    assert file.read_bytes() != whole
    checkpoint.write_bytes(original)
    file.write_bytes(whole[:100])  # damaged: made anew as well
    judge(run)
    assert file.read_bytes() == whole


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
    assert 0 <= stored[f"ood/{name}/entropy/auroc"] <= 1
    by_class = stored["per_class"]
    assert list(by_class) == ["cat", "dog", "emu"] and all(own["images"] == 4 for own in by_class.values())
    assert np.mean([own["accuracy"] for own in by_class.values()]) == pytest.approx(stored["accuracy"])
    assert stored["about"]["conventions"]["ood"] and stored["about"]["precision"] == "32-true"


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_other_programs_predictions_are_judged_alike(tmp_path, capsys, kind, members):
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((20, members, 4)).astype(np.float32), rng.integers(0, 4, 20)
    shown = logits if kind == "logits" else torch.from_numpy(logits).softmax(2).numpy()
    np.savez(tmp_path / "theirs.npz", targets=targets, **{kind: shown if members > 1 else shown[:, 0]})
    from mixmo.testing import judge_file

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
        ({"targets": np.zeros(2, int), "logits": np.zeros((2, 3)), "classes": ["a"]}, "has 1 names of classes"),
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
        ("--predictions=nowhere.npz",): "there are no predictions at nowhere.npz",
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
