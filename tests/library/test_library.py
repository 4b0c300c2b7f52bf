"""``mixmo.fit`` on a Dataset, arrays or a LightningDataModule, and the methods of its run."""

import logging
import random
import re
import shutil
import time
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from killing import differences, fit_or_resume, run_in_fork
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import mixmo
from mixmo import checkpoints
from mixmo.errors import InputError, MissingError
from mixmo.runs import RunFolder

FAST = {"batch_size": 16, "lr": 0.1, "num_members": 2, "epochs": 2, "progress": False}
NET = "wide_resnet10_1"


class Own(Dataset):
    """Digits shifted at random by all three global generators, as floats from -1 to 1."""

    classes = tuple(f"number {digit}" for digit in range(10))

    def __init__(self, images, labels, shifted=True):
        self.images, self.labels, self.shifted = images, labels, shifted
        self.asked = []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.asked.append(index)
        image = torch.from_numpy(self.images[index]).float()[None] / 127.5 - 1
        if self.shifted:
            image = image.roll((random.randint(-1, 1), int(torch.randint(-1, 2, ()))), (1, 2))
            image = image + 0.05 * float(np.random.rand())  # noqa: NPY002
        return image, int(self.labels[index])


def weights(run, which="last"):
    return checkpoints.load(run.folder.checkpoint_file(which))["state_dict"]


def equal(first, second):
    return all(torch.equal(tensor, second[key]) for key, tensor in first.items())


@pytest.mark.slow
def test_arrays_are_learnt_tested_predicted_and_exported(digits, tmp_path):
    run = mixmo.fit(
        NET, digits["train"], test=digits["test"], out=tmp_path / "run", batch_size=16, batch_repetition=2, lr=0.05,
        epochs=8, flip=False, padding=1, input_repetition=0.5, progress=False,
    )  # fmt: skip
    found = run.test()
    assert (
        found["accuracy"] > 0.8 and run.metrics[-1]["epoch"] == 8
    )  # 0.1 where images and labels do not belong together
    images, labels = digits["test"]
    answers = run.predict(list(images))
    assert float((answers.labels.numpy() == labels).mean()) == pytest.approx(found["accuracy"])
    prepared = torch.from_numpy(images).float()[:, None] / 127.5 - 1
    own = run.network(prepared)
    torch.testing.assert_close(answers.probability, own.softmax(1).max(1).values.double(), rtol=1e-4, atol=1e-5)
    assert run.report.is_file() and run.export("onnx").difference < 1e-4
    again = mixmo.Run(tmp_path / "run")
    assert again.test() == pytest.approx(found, nan_ok=True)  # from cached predictions
    with pytest.raises(MissingError, match=r"mixmo.Run\(…\).test"):
        again.test(refresh=True)
    assert again.test(digits["test"])["nll"] == pytest.approx(found["nll"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_of_ones_own_is_the_same_run_with_workers_and_when_resumed(digits, tmp_path, workers):
    train, test = Own(*digits["train"]), Own(*digits["test"], shifted=False)
    options = FAST | {"batch_repetition": 2, "workers": workers}
    whole = mixmo.fit(NET, train, test=test, out=tmp_path / "whole", **options)

    class Stop(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        mixmo.fit(NET, train, test=test, out=tmp_path / "cut", callbacks=[Stop()], **options | {"workers": 0})
    state = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    resumed = mixmo.fit(NET, train, test=test, out=tmp_path / "cut", resume=True, **options)
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
    assert (np.random.get_state()[1] == state[2]).all()  # noqa: NPY002
    assert equal(weights(whole), weights(resumed))
    assert whole.network.num_classes == 10 and whole.predict(test[0][0][None]).classes == list(Own.classes)
    assert whole.test()["accuracy"] == pytest.approx(
        (whole.network(torch.stack([image for image, _ in test])).argmax(1).numpy() == test.labels).mean()
    )
    other = Own(digits["train"][0][::-1].copy(), digits["train"][1])
    for epochs in (2, 3):  # a finished run, and one to train on
        with pytest.raises(InputError, match="training data has changed"):
            mixmo.fit(NET, other, test=test, out=tmp_path / "cut", resume=True, **options | {"epochs": epochs})


@pytest.mark.slow
def test_a_killed_program_ends_as_an_undisturbed_one(tmp_path):
    """Three kills at random moments; tests/torture has thousands."""
    whole, run, rng, kills = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run"), random.Random(0), 0
    start = time.monotonic()
    run_in_fork(partial(fit_or_resume, whole.path))
    length = time.monotonic() - start
    while kills < 3:
        finished = run_in_fork(partial(fit_or_resume, run.path), rng.uniform(0.1, 0.7) * length)
        kills += not finished
        if finished:  # too early to be killed three times
            shutil.rmtree(run.path)
    run_in_fork(partial(fit_or_resume, run.path))
    assert not differences(whole, run, ("last", "previous", "best"))


def test_a_dataset_of_ones_own_is_asked_for_every_copy(digits, tmp_path):
    """As often as batch repetition and members require, in every epoch; all copies differ."""
    train = Own(digits["train"][0][:64], digits["train"][1][:64])
    seen = []

    class Watch(L.Callback):
        def on_train_start(self, trainer, training):
            train.asked.clear()

        def on_train_batch_start(self, trainer, training, batch, batch_idx):
            copies = batch.images.unflatten(0, (len(batch.chosen), -1))
            seen.append((copies.shape[1], len(copies.flatten(2).flatten(0, 1).unique(dim=0))))

    mixmo.fit(NET, train, epochs=2, batch_repetition=3, batch_size=24, validation=0, workers=0, callbacks=[Watch()],
              progress=False)  # fmt: skip
    assert np.bincount(train.asked).tolist() == [2 * 3 * 2] * 64  # epochs · b · M
    assert all(copies == 6 and different == 8 * 6 for copies, different in seen)


@pytest.mark.parametrize("kind", ["pil", "uint8", "chw", "subset", "tensors", "loader", "names"])
def test_the_same_images_in_other_forms_are_the_same_run(digits, tmp_path, kind):
    images, labels = (each[:80] for each in digits["train"])

    class Given(Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            label = f"{labels[index]}" if kind == "names" else labels[index]
            return {
                "uint8": images[index],
                "chw": torch.from_numpy(images[index])[None],
            }.get(kind, Image.fromarray(images[index])), label

    given = {
        "subset": Subset(Given(), range(80)),
        "tensors": TensorDataset(torch.from_numpy(images)[:, None], torch.from_numpy(labels)),
        "loader": DataLoader(Given(), batch_size=7, shuffle=True),
    }.get(kind, Given())
    options = FAST | {"epochs": 1, "validation": 0.25}
    first, second = (mixmo.fit(NET, each, **options) for each in ((images, labels), given))
    assert equal(weights(first), weights(second))


def test_a_datamodule_brings_its_splits(digits):
    class Module(L.LightningDataModule):
        def setup(self, stage):
            self.stage = stage

        def train_dataloader(self):
            return DataLoader(Own(*digits["train"]), 8)

        def val_dataloader(self):
            return DataLoader(Own(*digits["test"], shifted=False), 8)

        def test_dataloader(self):
            return DataLoader(Own(*digits["test"], shifted=False), 8)

    run = mixmo.fit(NET, Module(), **FAST | {"epochs": 1, "workers": 0})
    assert run.metrics[-1]["val_accuracy"] == pytest.approx(run.test()["accuracy"])


def test_a_dataset_of_the_hugging_face_library_is_the_same_run_as_its_arrays(digits):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    images, labels = digits["train"][0][:40], digits["train"][1][:40] % 2
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    content = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
    options = FAST | {"epochs": 1, "channels": 1}
    found = mixmo.fit(NET, datasets.Dataset.from_dict(content, features), **options)
    assert equal(weights(found), weights(mixmo.fit(NET, (images, labels), **options)))
    assert found.predict(list(images[:2])).classes == ["even", "odd"]


def test_a_module_of_ones_own_is_trained_and_loaded(digits, tmp_path):
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 10)

        def forward(self, images):
            return self.last(self.norm(self.first(images)).relu().mean((2, 3)))

    def net():
        return mixmo.MixMo(Tiny(), num_members=3, stem="first", head="last")

    own = FAST | {"num_members": None}
    with pytest.raises(InputError, match="Tiny does not say which module is its stem"):
        mixmo.fit(Tiny(), digits["train"], out=tmp_path / "run", **FAST)
    run = mixmo.fit(net(), digits["train"], out=tmp_path / "run", **own)
    assert run.network.num_members == 3
    images = torch.rand(3, 1, 8, 8)
    with pytest.raises(InputError, match=r"the module Tiny, which mixmo cannot build; pass what .*: mixmo\.load"):
        mixmo.load(tmp_path / "run")
    assert torch.equal(mixmo.load(tmp_path / "run", model=net())(images), run.network.cpu()(images))
    assert isinstance(mixmo.fuse(run.network), Tiny)
    with pytest.raises(InputError, match="format timm is for timm's networks; export a module Tiny as onnx"):
        run.export("timm")
    with pytest.raises(InputError, match="10 classes, but the images have 1 and 2"):
        mixmo.fit(net(), (digits["train"][0], digits["train"][1] % 2), **own)


class Ending(nn.Module):
    """A network that ends in the given layer."""

    def __init__(self, end):
        super().__init__()
        self.first, self.last, self.end = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 10), end

    def forward(self, images):
        return self.end(self.last(self.first(images).relu().mean((2, 3))))


@pytest.mark.parametrize("num_members", [1, 2])
def test_a_module_that_ends_in_a_softmax_is_refused(num_members, digits, tmp_path):
    for end, name in {nn.Softmax(1): "softmax", nn.LogSoftmax(1): "log_softmax"}.items():
        net = mixmo.MixMo(Ending(end), num_members, stem="first", head="last")
        with pytest.raises(InputError, match=f"ends in a {name}, but the loss takes logits"):
            mixmo.fit(net, digits["train"], out=tmp_path / "run", **FAST | {"num_members": num_members})
        assert not (tmp_path / "run").exists()
    net = mixmo.MixMo(Ending(nn.Identity()), num_members, stem="first", head="last")
    mixmo.fit(net, digits["train"], out=tmp_path / "run", **FAST | {"num_members": num_members})


def test_nothing_is_left_without_a_folder(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = mixmo.fit(NET, (digits["train"][0][:40], digits["train"][1][:40] % 2), **FAST)
    folder = run.path
    assert folder.is_dir() and not list(tmp_path.iterdir())
    del run
    assert not folder.exists()


def test_training_ends_early_and_stays_ended(digits, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mixmo")
    options = FAST | {"epochs": 30, "patience": 2, "lr": 1e-9, "out": tmp_path / "run"}  # learns nothing
    run = mixmo.fit(NET, (digits["train"][0][:80], digits["train"][1][:80] % 2), **options)
    values = [row["val_accuracy"] for row in run.metrics]
    best = int(np.argmax(values))
    assert len(values) == best + 3 < 30
    (line,) = [each.message for each in caplog.records if "stopped early" in each.message]
    assert f"after epoch {best + 3} of 30 (trainer.patience 2): epoch {best + 1} was the best" in line
    assert f"accuracy of {100 * max(values):.1f} % on validation images; {27 - best} epochs were not run" in line
    assert re.search(r"learning rate was still (100|10|1) % of its peak$", line)
    again = mixmo.fit(NET, (digits["train"][0][:80], digits["train"][1][:80] % 2), resume=True, **options)
    assert len(again.metrics) == len(values)
    with pytest.raises(InputError, match="no validation images to judge by"):
        mixmo.fit(NET, digits["train"], patience=2, validation=0, **FAST)


def test_one_line_for_each_epoch_or_silence(digits, capsys):
    given = (digits["train"][0][:40], digits["train"][1][:40] % 2)
    mixmo.fit(NET, given, **FAST)
    assert capsys.readouterr() == ("", "")


class Wrong(Dataset):
    """A Dataset that returns the given items."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Endless(IterableDataset):
    """An iterable Dataset."""

    def __iter__(self):
        return iter(())


PIXELS = np.zeros((8, 8), np.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Wrong(), "train is empty"),
        (Wrong(*[(PIXELS, 0)] * 4), "one class only"),
        (Wrong(*[PIXELS] * 4), "train image 0 of the Dataset is a ndarray; it has to be a pair"),
        (Wrong(*[(PIXELS, 0, 1)] * 4), "is a tuple of length 3; it has to be a pair"),
        (Wrong(*[{"pixels": PIXELS, "label": 0}] * 4), "a mapping with the keys pixels, label"),
        (Wrong((PIXELS, 0), (PIXELS, -1)), "train image 1 has the label -1; class numbers lie between 0 and"),
        (Wrong((PIXELS, 0), (PIXELS, 1.5)), "train image 1 has the label 1.5, a float"),
        (Wrong((PIXELS, 0), (PIXELS, None)), "train image 1 has the label None, a NoneType"),
        (Wrong((PIXELS, True), (PIXELS, False)), "has the label True, a bool"),
        (Wrong(("a.png", 0), ("b.png", 1)), "train image 0 of the Dataset is a str; it has to be a PIL image"),
        (Wrong((np.zeros((2, 8, 8, 5), np.uint8), 0)), r"train image 0 has shape \(2, 8, 8, 5\) and type uint8"),
        (Wrong(*[(np.zeros((8, 7, 5), np.uint8), k % 2) for k in range(8)]), r"has shape \(8, 7, 5\); set channels"),
        (Wrong((torch.full((1, 8, 8), torch.nan), 0), (torch.zeros(1, 8, 8), 1)), "with values from nan"),
        (
            Wrong(*[(PIXELS, k % 2) for k in range(7)], (np.zeros((8, 9), np.uint8), 1)),
            "is 8×9, but the first one is 8×8",
        ),
        (Wrong((torch.zeros(1, 8, 8), 0), *[(torch.zeros(1, 8, 9), 1)] * 7), "to one size"),
        ((np.zeros((3, 8, 8), np.uint8), [0, 1]), "there are 3 train images and 2 labels"),
        ((np.zeros((0, 8, 8), np.uint8), []), "there are 0 train images"),
        (7, "train is a int; give a map-style Dataset"),
        (Endless(), "train is a Endless; give a map-style Dataset"),
    ],
)
def test_bad_data_is_one_sentence_before_training(given, message, tmp_path):
    with pytest.raises(InputError, match=message):
        mixmo.fit(NET, given, out=tmp_path / "run", **FAST | {"batch_size": 2, "validation": 0, "workers": 0})
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_bad_splits_and_settings_are_one_sentence(digits, tmp_path):
    train, test = digits["train"], digits["test"]
    with pytest.raises(InputError, match="validation is the same object as train"):
        mixmo.fit(NET, train, val=train, **FAST)
    with pytest.raises(InputError, match="validation images are floating point, the others"):
        mixmo.fit(NET, train, val=Own(*test), **FAST)
    with pytest.raises(InputError, match="out is missing: a run on several devices"):
        mixmo.fit(NET, train, devices=2, **FAST)
    with pytest.raises(InputError, match="unknown keyword 'learning_rate'"):
        mixmo.fit(NET, train, learning_rate=0.1, **FAST)
    with pytest.raises(InputError, match="weight_decay is 'much'"):
        mixmo.fit(NET, train, weight_decay="much", **FAST)
    with pytest.raises(InputError, match="num_members is 0"):
        mixmo.fit(NET, train, **FAST | {"num_members": 0})
    with pytest.raises(InputError, match="a dataset by name, which has its own val and test"):
        mixmo.fit(NET, "digits", test=test, **FAST)
    with pytest.raises(InputError, match="val is 'digits'; pass images: only train takes a dataset's name"):
        mixmo.fit(NET, train, val="digits", **FAST)
    floats = (train[0][:, None] / np.float32(255), train[1])
    with pytest.raises(InputError, match=r"validation images have size \(16, 8\), but training images \(8, 8\)"):
        mixmo.fit(NET, floats, val=(floats[0].repeat(2, 2), train[1]), **FAST)
    with pytest.raises(InputError, match="columns is for datasets by name"):
        mixmo.fit(NET, train, columns={"group": "patient"}, **FAST)
    more = (test[0], test[1] + 1)
    with pytest.raises(InputError, match="classes that the training set lacks, 10"):
        mixmo.fit(NET, train, test=more, **FAST)
    mixmo.fit(NET, train, out=tmp_path / "run", **FAST)
    with pytest.raises(InputError, match="exists already"):
        mixmo.fit(NET, train, out=tmp_path / "run", **FAST)


def test_class_numbers_stand_for_the_class_names_of_the_training_set(digits, tmp_path):
    images, labels = digits["train"]
    train = TensorDataset(torch.from_numpy(images[:200]), torch.from_numpy(labels[:200]))
    train.classes = [f"digit {number}" for number in range(10)]
    run = mixmo.fit(NET, train, val=(images[200:300], labels[200:300]), out=tmp_path / "run", **FAST)
    named = TensorDataset(*map(torch.from_numpy, digits["test"]))
    named.classes = train.classes
    assert run.test(digits["test"])["accuracy"] == run.test(named)["accuracy"]
    with pytest.raises(InputError, match=r"test image 0 has the label 10; class numbers lie between 0 and 9"):
        run.test((images[:2], [10, 0]))
    sets = np.eye(3, dtype=int)[labels[:40] % 3]
    with pytest.raises(InputError, match=r"validation image 0 has the labels .* an array of 3 values"):
        mixmo.fit(NET, (images[:40], sets), val=(images[:2], sets[:2, :2]), multi_label=True, **FAST)


def test_folds_of_given_images_are_compared(digits, tmp_path):
    images, labels = (values[:120] for values in digits["train"])
    fit_fold = partial(mixmo.fit, NET, (images, labels), folds=3, validation=0.0, **FAST)
    runs = {kind: [fit_fold(fold=fold, mixer_kind=kind, out=tmp_path / kind / f"{fold}") for fold in range(3)]
            for kind in ("cut", "linear")}  # fmt: skip
    comparison = mixmo.compare(runs)
    assert comparison.images == 120 and [group.unit for group in comparison.groups] == ["folds", "folds"]
    again = mixmo.compare({kind: tmp_path / kind for kind in runs}, out=tmp_path / "page")  # predictions are cached
    assert again.differences == comparison.differences and again.page.is_file()
    with pytest.raises(MissingError, match="images were passed from Python"):
        mixmo.compare(tmp_path / "cut", refresh=True)
