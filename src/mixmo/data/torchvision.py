"""Datasets of torchvision, by the names that timm gives them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm.data
from PIL import Image

from mixmo.data.folders import FileImages
from mixmo.data.labels import number_labels
from mixmo.data.sources import Source, hash_parts
from mixmo.errors import InputError, MissingError, reason
from mixmo.escaping import printable

_ERRORS = (RuntimeError, AssertionError, OSError, ImportError, ValueError, KeyError)
"""What torchvision raises where a dataset is missing or damaged."""


@dataclass(frozen=True)
class TorchvisionImages:
    """Images of a dataset of torchvision that keeps them in memory, or in files of its own.

    Args:
        dataset: The dataset.
        title: What an image is called, before its number.
    """

    dataset: Any
    title: str

    def read(self, index: int) -> Image.Image:
        """Return an image."""
        image: Image.Image = self.dataset[index][0]
        return image

    def name(self, index: int) -> str:
        """Return its title and number."""
        return f"{self.title} {index}"

    def fingerprint(self, times: bool) -> str:
        """Return the hash of the pixels; empty where the dataset does not have them in memory."""
        return "" if self.pixels is None else hash_parts([self.pixels])

    @property
    def pixels(self) -> np.ndarray | None:
        """(N, …), where the dataset has them in memory."""
        pixels = getattr(self.dataset, "data", None)
        return None if pixels is None else np.asarray(pixels)


def open_torchvision(split: str, name: str, root: str, download: bool, option: str, on_error: str) -> Source:
    """Return a dataset of torchvision.

    Args:
        split: ``train`` or ``test``.
        name: As timm has it: ``torch/cifar100``.
        root: Where it lies, or is downloaded to.
        download: Whether a missing one may be downloaded.
        option: The option that allows downloads in this command, for errors.
        on_error: ``raise``, or ``skip`` images without a label.

    Raises:
        MissingError: if it is not there.
        InputError: if it has no class numbers.
    """
    try:
        if not download:
            _check_there(name, root)
        dataset = timm.data.create_dataset(name, root=root, split=split, download=download)
    except _ERRORS as error:
        elsewhere = ", or set --data.root" if option.startswith("--data.") else ", or put it there"
        advice = "" if download else f"; allow its download with {option}{elsewhere}"
        raise MissingError(f"dataset {name!r} cannot be opened in {root!r}: {reason(error)}{advice}.") from error
    try:
        labels = _read_labels(dataset)
    except (TypeError, *_ERRORS) as error:
        raise InputError(f"dataset {name!r} has no class numbers in its {split} split: {reason(error)}.") from error
    classes = getattr(dataset, "classes", None)
    names = None if not classes else [str(each) for each in classes]
    numbers, names = number_labels(labels, names, f"dataset {name!r}, {split}", on_error)
    if files := getattr(dataset, "samples", None) or getattr(dataset, "imgs", None):
        top = str(getattr(dataset, "root", root))
        source = Source(numbers, names, FileImages(top, [os.path.relpath(file, top) for file, _ in files]))
    else:
        source = Source(numbers, names, TorchvisionImages(dataset, f"{name} {split} image"))
    return source.drop_unlabelled()


def _check_there(name: str, root: str) -> None:
    """Refuse a dataset of torchvision for which it would make folders, also where nothing may be downloaded."""
    made = {"inaturalist": "2021_train", "inat": "2021_train", "imagenet": "train"}.get(name.lower().rpartition("/")[2])
    if not os.path.isdir(folder := os.path.join(root, made or "")):
        raise FileNotFoundError(f"there is no folder {printable(folder)}")


def _read_labels(dataset: Any) -> list[int]:
    """Return the class numbers, without decoding images where the dataset knows them."""
    labels: Sequence[Any] | None = getattr(dataset, "targets", None)
    if labels is None:
        labels = [int(dataset[i][1]) for i in range(len(dataset))]
    numbers = np.asarray(labels, dtype=np.int64)
    found: list[int] = (numbers if numbers.ndim == 1 else numbers[:, 0]).tolist()  # QMNIST has more than the digit
    return found
