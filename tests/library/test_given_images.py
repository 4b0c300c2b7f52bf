"""Groups and folds of images passed from Python, and settings that do not fit them."""

import csv
import json
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch.utils.data import Dataset

import mixmo
from mixmo.data.given import add_groups, open_given
from mixmo.data.sources import number_groups
from mixmo.errors import InputError, StoppedError

FAST = {"batch_size": 16, "lr": 0.1, "num_members": 2, "epochs": 2, "progress": False}
NET = "wide_resnet10_1"


def test_groups_and_folds_of_arrays(digits, tmp_path):
    images, labels = digits["train"]
    patients = np.array([f"patient {number // 4}" for number in range(400)])
    own = FAST | {"epochs": 1, "limit_train_batches": 2, "folds": 4, "fold": 1}
    run = mixmo.fit(NET, (images, labels), groups=patients, out=tmp_path / "run", **own)
    parts = {}
    for row in csv.DictReader((tmp_path / "run/split.csv").open()):
        parts.setdefault(row["split"], set()).add(patients[int(row["path"].split()[-1])])
    assert set(parts) == {"train", "validation", "test"} and sum(map(len, parts.values())) == 100
    run.test()
    about = json.loads((tmp_path / "run/test.json").read_text())["about"]
    assert 80 < about["images"] < 120 and about["images"] == 4 * len(parts["test"])
    own["epochs"] = 2
    with pytest.raises(InputError, match="training data has changed"):
        mixmo.fit(NET, (images, labels), groups=np.roll(patients, 1), out=tmp_path / "run", resume=True, **own)
    mixmo.Run(tmp_path / "run").test(digits["test"])  # others in place of the fold
    assert json.loads((tmp_path / "run/test.json").read_text())["about"]["images"] == 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": [1, 2]}, "there are 2 groups and 400 training images"),
        ({"groups": [None] * 400}, r"groups\[0\] is None; groups are whole numbers or names"),
        ({"groups": 5}, "groups is 5; groups are whole numbers or names"),
        ({"train": "digits", "test": None, "groups": [1]}, "a table has its groups in the column `group`"),
        ({"folds": 3}, "test and folds are both set"),
        ({"test": None, "groups": [0, 1] * 200, "folds": 3}, "data.folds is 3, but there are 2 groups; lower it"),
        ({"class_weights": [1, 2]}, "objective.class_weights has 2 numbers, but there are 10 classes"),
    ],
)
def test_wrong_groups_folds_and_weights_are_one_sentence(digits, changes, message):
    with pytest.raises(InputError, match=message):
        mixmo.fit(**{"model": NET, **digits, **FAST} | changes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("window", [0, 1]),
        ("image_size", 8),
        ("policy", "randaugment"),
        ("flip", True),
        ("padding", 2),
        ("mean", [0.3]),
        ("on_error", "skip"),
    ],
)
def test_what_is_not_done_to_prepared_images_is_refused(digits, key, value):
    floats = {split: (images / np.float32(255), labels) for split, (images, labels) in digits.items()}
    floats = {split: (images.reshape(len(images), 1, 8, 8), labels) for split, (images, labels) in floats.items()}
    with pytest.raises(InputError, match=f"{key} is .*, but the images are floating point"):
        mixmo.fit(NET, **floats, **FAST, **{key: value})


def test_other_test_images_do_not_replace_the_runs_own(digits, tmp_path):
    """Neither in the run nor in its folder; images unlike those of training are refused."""
    (images, labels), (more, numbers) = digits["train"], digits["test"]
    short = FAST | {"epochs": 1, "limit_train_batches": 2, "out": tmp_path / "run"}
    run = mixmo.fit(NET, (images, labels), test=(more[:60], numbers[:60]), **short)
    own, other = run.test(), run.test((more[60:], numbers[60:]))
    assert own["nll"] != other["nll"] and run.test() == pytest.approx(own, nan_ok=True)
    again = mixmo.Run(tmp_path / "run")
    assert again.test() == pytest.approx(own, nan_ok=True)  # from cached predictions
    floats, large = more[:, None] / np.float32(255), more.repeat(2, 1).repeat(2, 2)
    for each, given, message in (
        (again, (floats, numbers), "test images are floating point, but those that .* was trained on are not"),
        (again, (large, numbers), "test images have 16×16 pixels, but .* was trained on 8×8"),
        (run, "digits", "test is 'digits'; pass images: only train takes"),
    ):
        with pytest.raises(InputError, match=message):
            each.test(given)


class Changing(Dataset):
    """Images and labels that may be changed in place."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


@pytest.mark.parametrize("floats", [False, True])
def test_results_are_not_reused_for_a_changed_dataset(digits, floats):
    """Also if only images change that lie between those by which training recognises its images."""
    scaled = {split: images[:, None] / np.float32(255) if floats else images for split, (images, _) in digits.items()}
    own = Changing(scaled["test"][:80].copy(), digits["test"][1])
    run = mixmo.fit(NET, (scaled["train"], digits["train"][1]), test=own, **FAST | {"epochs": 1})
    test = run.test if floats else partial(run.test, own)  # images of integers are read once, unless passed again
    before = test()["nll"]
    assert test()["nll"] == before
    own.images[1:9] = own.images[1:9].max() - own.images[1:9]
    assert test()["nll"] == test(refresh=True)["nll"] != before


def test_runs_trained_by_name_are_tested_on_other_images(digits):
    run = mixmo.fit(recipe="digits-cut", epochs=1, limit_train_batches=2, progress=False)
    own, other = run.test(), run.test(digits["test"], tta="flip", refresh=True)
    assert json.loads((run.path / "test.json").read_text())["about"]["dataset"] == "given"
    assert other["temperature"] > 0 and run.test() == pytest.approx(own, nan_ok=True)
    assert json.loads((run.path / "test.json").read_text())["about"]["dataset"] == "digits"


def test_other_test_images_without_a_label_are_left_out_like_those_of_training(digits):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    run = mixmo.fit(NET, digits["train"], on_error="skip", **FAST | {"epochs": 1, "limit_train_batches": 1})
    rows = [Image.fromarray(image) for image in digits["test"][0][:40]], [-1, *digits["test"][1][1:40]]
    table = datasets.Dataset.from_dict(dict(zip(("image", "label"), rows, strict=True)))
    table = table.cast_column("image", datasets.Image())
    run.test(table)
    assert json.loads((run.path / "test.json").read_text())["about"]["images"] == 39
    source = add_groups(open_given(table, "train", on_error="skip"), range(40))
    assert source.groups.tolist() == number_groups(range(1, 40)).tolist()


def test_numbers_in_a_table_are_positions_in_the_training_sets_classes(digits):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    names = [f"digit {number}" for number in range(10)]
    tables = [
        datasets.Dataset.from_dict({"image": [*map(Image.fromarray, images)], "label": labels.tolist()})
        for images, labels in digits.values()
    ]
    train, test = (table.cast_column("image", datasets.Image()) for table in tables)
    run = mixmo.fit(NET, train.cast_column("label", datasets.ClassLabel(names=names)), test=test, channels=1, **FAST)
    assert run.header.classes == names
    arrays = mixmo.fit(NET, digits["train"], test=digits["test"], **FAST)
    assert run.test()["accuracy"] == arrays.test()["accuracy"]


def test_prepared_images_unlike_those_of_training_are_named(digits, caplog, monkeypatch):
    images, labels = digits["train"]
    floats = images.reshape(len(images), 1, 8, 8) / np.float32(255)
    run = mixmo.fit(NET, (floats, labels), **FAST | {"epochs": 1, "limit_train_batches": 1})
    with pytest.raises(InputError, match=r"image 1 has shape \(1, 8, 9\), but image 0 has \(1, 8, 8\)"):
        run.predict([torch.zeros(1, 8, 8), torch.zeros(1, 8, 9)])
    with pytest.raises(InputError, match="image 1 has values that are not finite"):
        run.predict([torch.zeros(1, 8, 8), torch.full((1, 8, 8), torch.nan)])
    run.predict(torch.zeros(2, 1, 8, 8))
    assert "have shape" not in caplog.text
    run.predict(torch.zeros(2, 1, 16, 8))
    assert "Images have shape (1, 16, 8), but those of training had (1, 8, 8)" in caplog.text
    predictor = mixmo.Predictor(run)
    monkeypatch.setattr(predictor, "_forward", lambda images: (torch.full((2, 2, 10), torch.nan), None))
    with pytest.raises(InputError, match="answers image 0 with numbers that are not finite"):
        predictor(torch.zeros(2, 1, 8, 8))


def test_each_run_warns_anew_and_of_a_freeze_beyond_its_end(digits, caplog):
    """Another dataset in the same process, such as a notebook, may have different problems."""
    images, labels = digits["train"]
    four = np.repeat(np.asarray(images)[:40, :, :, None], 4, 3)
    own = FAST | {"epochs": 1, "limit_train_batches": 1, "freeze_epochs": 1, "validation": 0.0}
    for _ in range(2):
        caplog.clear()
        mixmo.fit(mixmo.MixMo(NET, 2, 10), (four, np.asarray(labels)[:40]), **own)
        assert "the fourth is used as opacity" in caplog.text
        assert "optimizer.freeze_epochs is 1, and trainer.max_epochs 1: only encoders and heads" in caplog.text


class Stop(Callback):
    """Stops training as a scheduler does."""

    def on_train_batch_end(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_program_is_told_how_to_resume(digits, tmp_path):
    for out, advice in ((None, r"only a run with out=… can be resumed"), (tmp_path, r"mixmo\.fit\(.*resume=True\)")):
        with pytest.raises(StoppedError, match=advice):
            mixmo.fit(NET, digits["train"], out=out and out / "run", callbacks=[Stop()], **FAST)
