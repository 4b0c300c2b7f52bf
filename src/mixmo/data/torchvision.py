"""Datasets of torchvision, by timm's names."""

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
"""Errors that torchvision raises for missing or damaged datasets."""


def open_torchvision(name: str, split: str, settings: DataSettings, option: str) -> Source:
    """Open ``train`` or ``test`` of a dataset of torchvision by timm's name, such as ``torch/cifar100``."""
    root = settings.root
    try:
        if not settings.download:
            _check_folder_exists(name, root)
        dataset = timm.data.create_dataset(name, root=root, split=split, download=settings.download)
    except _ERRORS as error:
        alternative = "set data.root" if option.startswith("data.") else "put it there"
        advice = "" if settings.download else f"; allow its download with {option}, or {alternative}"
        raise MissingError(f"dataset {name!r} cannot be opened in {root!r}: {reason(error)}{advice}.") from error
    try:
        labels = _read_labels(dataset)
    except (TypeError, *_ERRORS) as error:
        raise InputError(f"dataset {name!r} has no class numbers in its {split} split: {reason(error)}.") from error
    classes = getattr(dataset, "classes", None)
    names = None if not classes else [str(each) for each in classes]
    numbers, names = number_labels(labels, names, f"dataset {name!r}, {split}", settings.on_error)
    if (files := _list_files(dataset)) is None:
        images: Images = ArrayImages(np.asarray(dataset.data), f"{name} {split} image")
    else:
        root = str(getattr(dataset, "root", root))
        images = FileImages(root, [os.path.relpath(file, root) for file in files])
    return Source(numbers, names, images).drop_unlabelled()


def _list_files(dataset: Any) -> list[str] | None:
    """Return the files of a dataset; ``None`` if its images are in memory."""
    if samples := getattr(dataset, "samples", None) or getattr(dataset, "imgs", None):
        return [file for file, _ in samples]
    if isinstance(dataset, INaturalist):
        return [os.path.join(dataset.root, dataset.all_categories[each], name) for each, name in dataset.index]
    return None


def _check_folder_exists(name: str, root: str) -> None:
    """Refuse a missing folder, which timm or torchvision would create even without a download."""
    subfolders = {"inaturalist": "2021_train", "inat": "2021_train", "imagenet": "train"}
    if not os.path.isdir(folder := os.path.join(root, subfolders.get(name.lower().rpartition("/")[2], ""))):
        raise FileNotFoundError(f"there is no folder {printable(folder)}")


def _read_labels(dataset: Any) -> list[int]:
    """Return the class numbers, without decoding images if the dataset lists them."""
    labels: Any = getattr(dataset, "targets", None)
    if labels is None:
        labels = [int(dataset[i][1]) for i in range(len(dataset))]
    numbers = np.asarray(labels, dtype=np.int64)
    return list((numbers if numbers.ndim == 1 else numbers[:, 0]).tolist())  # QMNIST's have further columns
