"""Datasets of torchvision, by the names that timm gives them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import timm.data
from torchvision.datasets import INaturalist

from mixmo.config.data_settings import DataSettings
from mixmo.data.folders import FileImages
from mixmo.data.labels import number_labels
from mixmo.data.sources import ArrayImages, Images, Source
from mixmo.errors import InputError, MissingError, reason
from mixmo.escaping import printable

_ERRORS = (RuntimeError, AssertionError, OSError, ImportError, ValueError, KeyError)
"""What torchvision raises where a dataset is missing or damaged."""


def open_torchvision(name: str, split: str, how: DataSettings, option: str) -> Source:
    """Return the images of ``train`` or ``test`` of a dataset of torchvision, as timm calls it: ``torch/cifar100``."""
    try:
        if not how.download:
            _check_there(name, how.root)
        dataset = timm.data.create_dataset(name, root=how.root, split=split, download=how.download)
    except _ERRORS as error:
        elsewhere = ", or set --data.root" if option.startswith("--data.") else ", or put it there"
        advice = "" if how.download else f"; allow its download with {option}{elsewhere}"
        raise MissingError(f"dataset {name!r} cannot be opened in {how.root!r}: {reason(error)}{advice}.") from error
    try:
        labels = _read_labels(dataset)
    except (TypeError, *_ERRORS) as error:
        raise InputError(f"dataset {name!r} has no class numbers in its {split} split: {reason(error)}.") from error
    classes = getattr(dataset, "classes", None)
    names = None if not classes else [str(each) for each in classes]
    numbers, names = number_labels(labels, names, f"dataset {name!r}, {split}", how.on_error)
    if (files := _list_files(dataset)) is None:
        images: Images = ArrayImages(np.asarray(dataset.data), f"{name} {split} image")
    else:
        top = str(getattr(dataset, "root", how.root))
        images = FileImages(top, [os.path.relpath(file, top) for file in files])
    return Source(numbers, names, images).drop_unlabelled()


def _list_files(dataset: Any) -> list[str] | None:
    """Return the files of a dataset; ``None`` if it has its images in memory."""
    if named := getattr(dataset, "samples", None) or getattr(dataset, "imgs", None):
        return [file for file, _ in named]
    if isinstance(dataset, INaturalist):
        return [os.path.join(dataset.root, dataset.all_categories[each], name) for each, name in dataset.index]
    return None


def _check_there(name: str, root: str) -> None:
    """Refuse a dataset of torchvision for which it would make folders, also where nothing may be downloaded."""
    made = {"inaturalist": "2021_train", "inat": "2021_train", "imagenet": "train"}.get(name.lower().rpartition("/")[2])
    if not os.path.isdir(folder := os.path.join(root, made or "")):
        raise FileNotFoundError(f"there is no folder {printable(folder)}")


def _read_labels(dataset: Any) -> list[int]:
    """Return the class numbers, without decoding images where the dataset knows them."""
    labels: Any = getattr(dataset, "targets", None)
    if labels is None:
        labels = [int(dataset[i][1]) for i in range(len(dataset))]
    numbers = np.asarray(labels, dtype=np.int64)
    return list((numbers if numbers.ndim == 1 else numbers[:, 0]).tolist())  # QMNIST has more than the digit
