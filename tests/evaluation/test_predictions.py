"""Cached predictions are used as long as nothing they depend on changes; files of predictions are checked."""

import shutil

import numpy as np
import pytest
import torch
from conftest import copy_run, write_images
from safetensors.torch import load_file

from mixmo.cli.main import main
from mixmo.errors import MissingError
from mixmo.evaluation import inference
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import predict, read_predictions


def kept(run, dataset):
    return load_file(run.path / "predictions" / f"{dataset}-last-32-true.safetensors")


def test_kept_predictions_of_another_checkpoint_are_not_used(trained, another_seed, tmp_path):
    folder, run, _ = trained
    run = copy_run(run, folder, tmp_path)
    predict(TrainedRun(run))
    file = run.path / "predictions" / "test-last-32-true.safetensors"
    whole = file.read_bytes()
    checkpoint = run.checkpoint_file()
    original = checkpoint.read_bytes()
    shutil.copy(another_seed.checkpoint_file(), checkpoint)
    predict(TrainedRun(run))
    assert file.read_bytes() != whole
    checkpoint.write_bytes(original)
    file.write_bytes(whole[:100])  # damaged: computed again as well
    predict(TrainedRun(run))
    assert file.read_bytes() == whole


def replace_pictures(folder):
    shutil.rmtree(folder / "test")
    write_images(folder / "test", count=4, seed=9)


def test_replaced_pictures_are_predicted_again(trained, tmp_path):
    folder, run, _ = trained
    run = copy_run(run, folder, tmp_path)
    before = predict(TrainedRun(run)).logits
    replace_pictures(tmp_path / "data")
    after = predict(TrainedRun(run)).logits
    assert not torch.equal(after, before)
    shutil.rmtree(run.path / "predictions")
    assert torch.equal(predict(TrainedRun(run)).logits, after)


def test_replaced_training_pictures_are_predicted_again(trained, tmp_path):
    folder, run, _ = trained
    run = copy_run(run, folder, tmp_path)
    before = predict(TrainedRun(run), "validation").logits
    shutil.rmtree(tmp_path / "data" / "train")
    write_images(tmp_path / "data" / "train", count=12, seed=9)
    assert not torch.equal(predict(TrainedRun(run), "validation").logits, before)


def test_replaced_pictures_of_another_dataset_are_predicted_again(trained, tmp_path):
    folder, run, _ = trained
    shutil.copytree(folder / "other", tmp_path / "other")
    name = f"folder:{tmp_path}/other"
    before = predict(TrainedRun(run), name).logits
    replace_pictures(tmp_path / "other")
    assert predict(TrainedRun(run), name).logits.shape != before.shape


def test_another_input_size_is_predicted_again(trained, tmp_path):
    """Other datasets are resized to the run's image size."""
    folder, run, _ = trained
    run = copy_run(run, folder, tmp_path)
    name = f"folder:{folder}/other"
    before = predict(TrainedRun(run), name).logits
    for split in ("train", "test"):
        shutil.rmtree(tmp_path / "data" / split)
        write_images(tmp_path / "data" / split, count=12, size=12, seed=1)
    assert not torch.equal(predict(TrainedRun(run), name).logits, before)


def test_predictions_without_their_pictures_are_missing(trained, tmp_path):
    folder, run, _ = trained
    run = copy_run(run, folder, tmp_path)
    predict(TrainedRun(run))
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(MissingError, match="there is no dataset folder"):
        predict(TrainedRun(run))


def test_kept_predictions_of_another_version_are_not_used(trained, monkeypatch, computed):
    _, run, _ = trained
    predict(TrainedRun(run))
    computed.clear()
    monkeypatch.setattr(inference, "__version__", "0.0.7")
    predict(TrainedRun(run))
    predict(TrainedRun(run))
    assert computed == ["test"]


def test_a_flipped_sign_in_kept_predictions_is_noticed(trained, caplog):
    _, run, _ = trained
    expected = predict(TrainedRun(run)).logits.clone()  # what is read from the file changes with its bytes
    file = run.path / "predictions" / "test-last-32-true.safetensors"
    content = bytearray(file.read_bytes())
    content[file.read_bytes().index(expected.numpy().tobytes()) + 3] ^= 0x80
    file.write_bytes(content)
    assert torch.equal(predict(TrainedRun(run)).logits, expected)
    (warning,) = caplog.records
    assert warning.getMessage() == f"{file} is damaged or of an earlier version; it is computed again."
    assert torch.equal(kept(run, "test")["logits"], expected)


def test_long_names_of_datasets_have_files_of_their_own(trained, tmp_path):
    _, run, _ = trained
    folders = [tmp_path / ("x" * 200) / ("y" * 200) / end for end in ("a b", "a-b")]
    for seed, folder in enumerate(folders):
        write_images(folder / "train", size=8)
        write_images(folder / "test", size=8, seed=seed)
    before = set((run.path / "predictions").iterdir())
    for folder in folders:
        predict(TrainedRun(run), f"folder:{folder}")
    assert len(set((run.path / "predictions").iterdir()) - before) == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": np.zeros((2, 3))}, "holds logits; it needs targets"),
        ({"targets": np.zeros(2, int)}, "holds targets; it needs targets, and logits or probabilities"),
        ({"targets": np.zeros(2, int), "logits": np.zeros(2)}, "of shape (2,)"),
        ({"targets": np.zeros(2, int), "probabilities": np.ones((2, 3))}, "row 0 sum to 3"),
        ({"targets": np.full(2, 7), "logits": np.zeros((2, 3))}, "target 7 in row 0"),
        ({"targets": np.zeros(2), "logits": np.zeros((2, 3))}, "targets have type float64; they must be integers"),
        ({"targets": np.zeros(2, int), "logits": np.array([["a"]])}, "<U1; they must be floats (N, K)"),
        (
            {"targets": np.zeros(2, int), "logits": np.zeros((2, 3)), "classes": ["a"]},
            "has classes of shape (1,), <U1; they must be 3 names",
        ),
        (
            {"targets": np.zeros(2, int), "logits": np.zeros((2, 3)), "classes": ["a", "b", "a"]},
            "has 2 classes named a; give each class a name of its own",
        ),
    ],
)
def test_bad_predictions_are_one_sentence(tmp_path, capsys, arrays, message):
    np.savez(tmp_path / "theirs.npz", **arrays)
    assert main(["test", "--predictions", str(tmp_path / "theirs.npz")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("mixmo: ")
    assert message in error


@pytest.mark.parametrize(("targets", "zeros"), [([0, 1, 2], 1), ([2, 2, 2], 0), ([[1, 0, 1], [0, 1, 1], [0, 0, 0]], 2)])
def test_a_true_class_of_probability_zero_is_said(tmp_path, caplog, targets, zeros):
    """Not that of another class; with several labels, nor a probability of 1 for an absent label."""
    probabilities = np.array([[0, 0.5, 0.5], [0, 0.5, 0.5], [0, 0, 1]])
    np.savez(tmp_path / "sure.npz", probabilities=probabilities, targets=targets)
    predictions = read_predictions(tmp_path / "sure.npz")
    assert predictions.logits.isfinite().all() and len(caplog.messages) == (zeros > 0)
    assert all(f"exactly 0 for the label of {zeros} images" in message for message in caplog.messages)


def test_half_precision_probabilities_are_read(tmp_path):
    """Rows of 100 rounded numbers sum to one within what 16 bits allow."""
    probabilities = torch.randn(200, 100).softmax(1).half().numpy()
    np.savez(tmp_path / "half.npz", probabilities=probabilities, targets=np.zeros(200, int))
    assert read_predictions(tmp_path / "half.npz").logits.shape == (200, 1, 100)
