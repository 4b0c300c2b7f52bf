"""Datasets of torchvision, by timm's names."""

import urllib.error

import numpy as np
import pytest
import torch
from conftest import open_data, open_source

from mixmo.config.data_settings import DataSettings
from mixmo.errors import InputError


def settings(folder, **changes):
    return DataSettings(**({"name": f"folder:{folder}", "batch_size": 8, "validation": 0.0, "padding": 1} | changes))


def test_names_of_timm_are_opened(image_folder):
    """The same folder through timm: ``torch/image_folder`` is torchvision's own."""
    ours = open_data(settings(image_folder))
    theirs = open_data(settings(image_folder, name="torch/image_folder", root=str(image_folder)))
    assert ours.classes == theirs.classes
    assert torch.equal(ours.train.images, theirs.train.images)
    assert torch.equal(ours.test.labels, theirs.test.labels)


def test_a_grey_dataset_of_torchvision(tmp_path):
    """MNIST in its own files, ten made-up digits in each split."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(10 * 28 * 28, dtype=np.uint32).astype(np.uint8)
    for split in ("train", "t10k"):
        header = b"".join(number.to_bytes(4, "big") for number in (2051, 10, 28, 28))
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = b"".join(number.to_bytes(4, "big") for number in (2049, 10))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header + bytes(range(10)))
    data = open_data(DataSettings(name="torch/mnist", root=str(tmp_path), channels=1, batch_size=5, validation=0.0))
    assert np.array_equal(data.train.images.numpy().ravel(), pixels)
    assert data.train.labels.tolist() == list(range(10)) and len(data.classes) == 10


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(FileNotFoundError, match=r"'torch/cifar100' cannot be opened in .*no network"):
        open_data(DataSettings(name="torch/cifar100", root=str(tmp_path), download=True))


class Listed:
    """A torchvision dataset with a list of labels."""

    def __init__(self, targets):
        self.targets, self.classes = targets, ["cat", "dog"]

    def __len__(self):
        return len(self.targets)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([-1, -1], ": 2 of 2 labels are -1 [(]no label[)]"),
        ([0, 2], " image 1 has the label 2; class numbers lie between 0 and 1"),
        ([[0], "x"], " has no class numbers in its test split"),
    ],
)
def test_labels_that_are_none_are_refused(monkeypatch, tmp_path, labels, said):
    """As in test sets of competitions."""
    monkeypatch.setattr("timm.data.create_dataset", lambda name, **_: Listed(labels))
    with pytest.raises(InputError, match=f"dataset 'torch/any'(, test)?{said}"):
        open_source("torch/any", "test", root=str(tmp_path))
