"""Datasets by timm's names: torchvision's and Hugging Face's."""

import io
import urllib.error

import numpy as np
import pytest
import torch
from conftest import data_of
from PIL import Image

from mixmo.config.data_settings import DataSettings
from mixmo.data.datasets import open_source
from mixmo.data.sources import decode
from mixmo.errors import InputError


def settings(folder, **changes):
    return DataSettings(**({"name": f"folder:{folder}", "batch_size": 8, "validation": 0.0, "padding": 1} | changes))


def test_names_of_timm_are_opened(image_folder):
    """The same folder through timm: ``torch/image_folder`` is torchvision's own."""
    ours = data_of(settings(image_folder))
    theirs = data_of(settings(image_folder, name="torch/image_folder", root=str(image_folder)))
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
    data = data_of(DataSettings(name="torch/mnist", root=str(tmp_path), channels=1, batch_size=5, validation=0.0))
    assert np.array_equal(data.train.images.numpy().ravel(), pixels)
    assert data.train.labels.tolist() == list(range(10)) and len(data.classes) == 10


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(FileNotFoundError, match=r"'torch/cifar100' cannot be opened in .*no network"):
        data_of(DataSettings(name="torch/cifar100", root=str(tmp_path), download=True))


class HuggingFace:
    """As timm wraps a dataset of Hugging Face: columns without images, and streams of encoded ones."""

    def __init__(self, contents, labels):
        self.contents, self.dataset, self.label_key = contents, Table(labels), "label"
        self.class_to_idx = {"dog": 1, "cat": 0}

    def __getitem__(self, index):
        return io.BytesIO(self.contents[index]), self.dataset["label"][index]


class Table(dict):
    def __init__(self, labels):
        super().__init__(label=labels)
        self._fingerprint = f"of {labels}"


class Wrapped:
    def __init__(self, reader):
        self.reader = reader

    def __getitem__(self, index):  # timm's way: another image in place of a damaged one
        raise AssertionError("not to be asked")

    def __len__(self):
        return len(self.reader.contents)


def test_datasets_of_hugging_face(monkeypatch):
    """Labels are read without images, images are decoded by our conventions, and none stands for a damaged one."""
    clear = io.BytesIO()
    Image.new("LA", (4, 4), 0).save(clear, "PNG")
    made = {
        split: Wrapped(HuggingFace([clear.getvalue(), b"damaged"], labels))
        for split, labels in {"train": [0, 1], "test": [1, 1]}.items()
    }
    monkeypatch.setattr("timm.data.create_dataset", lambda name, split, **_: made[split])
    source = open_source("hfds/any", "train", download=True)
    assert source.classes == ["cat", "dog"] and source.labels.tolist() == [0, 1]
    assert (decode(source, 0, None, 3) == 255).all()
    with pytest.raises(ValueError, match="image hfds/any train image 1 cannot be read"):
        decode(source, 1, None, 3)
    assert source.fingerprint() != open_source("hfds/any", "test", download=True).fingerprint()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([-1, -1], ": 2 of 2 labels are -1 [(]no label[)]"),
        ([0, 2], " has class number 2 in its test split, for 2 classes"),
        ([None, 0], ": 1 of 2 labels are -1 [(]no label[)]"),
        ([[0], "x"], " has no class numbers in its test split"),
    ],
)
def test_labels_that_are_none_are_refused(monkeypatch, labels, said):
    """As test sets of competitions have them."""
    monkeypatch.setattr("timm.data.create_dataset", lambda name, **_: Wrapped(HuggingFace([b"", b""], labels)))
    with pytest.raises(InputError, match=f"dataset 'hfds/any'{said}"):
        open_source("hfds/any", "test", download=True)
