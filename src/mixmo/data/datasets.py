"""Datasets by name: scikit-learn's digits, timm's names, folders, zip and tar files, tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm.data
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mixmo.data.folders import FileImages
from mixmo.data.given import GIVEN
from mixmo.data.local import DOWNLOAD, KINDS, Reading, find_local_splits, open_local
from mixmo.data.shards import are_labels
from mixmo.data.sources import ArrayImages, Source, check_look_alike, hash_parts
from mixmo.errors import InputError, MissingError, one_of, reason
from mixmo.names import printable


def open_source(
    name: str,
    split: str,
    root: str = "data",
    download: bool = False,
    on_error: str = "raise",
    option: str = DOWNLOAD,
) -> Source:
    """Open one split of a dataset; no image is decoded.

    Args:
        name: ``digits`` (scikit-learn's, 8×8); ``folder:PATH`` with PATH/train and PATH/test (or val), each class
            folders, or tar files of such (``train.tar``, shards ``train-0.tar.gz`` …), or PATH a zip file of such;
            ``csv:PATH``, a table of paths, labels and splits; ``webdataset:PATH``, tar shards; ``parquet:PATH``,
            Parquet files; or a name that timm knows: ``torch/cifar10``, ``torch/cifar100``, ``hfds/…``.
        split: ``train`` or ``test``; ``validation`` where there are all three; ``all`` images where there are none.
        root: Where timm's datasets lie or are downloaded to.
        download: Whether a missing dataset may be downloaded.
        on_error: ``raise``, or ``skip`` shards and their records that are missing or damaged.
        option: What allows downloads in the command at hand, for errors.

    Raises:
        MissingError: if the path is missing or empty, or has no such split.
        InputError: if the name is unknown, or a training set has fewer than two classes.

    Example:
        >>> source = open_source("digits", "test")
        >>> len(source), source.read(0).size
        (360, (8, 8))
    """
    one_of(split, ("train", "test", "validation", "all"), "split")
    kind, colon, path = name.partition(":")
    if name == "digits":
        source = _open_digits(split)
    elif colon and kind in KINDS:
        source = open_local(kind, path, split, Reading(on_error, download, option))
    elif name == GIVEN:
        raise MissingError(
            "the images were given by a program, as a Dataset or arrays; give them again: mixmo.fit(…, resume=True), "
            "or mixmo.Run(…).test(…)."
        )
    elif name.partition("/")[0] in ("torch", "hfds"):
        source = _open_timm(name, split, root, download, option, on_error)
    else:
        raise InputError(
            f"unknown dataset {name!r}; it is digits, folder:PATH, csv:PATH, webdataset:PATH, "
            "parquet:PATH, torch/… or hfds/…."
        )
    if split in ("train", "all") and len(source.classes) < 2:
        raise InputError(
            f"dataset {name!r} has one class only ({', '.join(map(printable, source.classes))}); a classifier needs "
            "two or more."
        )
    check_look_alike(source.classes, f"dataset {name!r}")
    if not len(source):
        raise MissingError(f"dataset {name!r} has no images in its {split} split.")
    return source


def find_splits(name: str, download: bool = False, option: str = DOWNLOAD) -> set[str]:
    """Return which of ``train``, ``validation`` and ``test`` a dataset has; nothing where classes stand without splits.

    Args:
        name: As for :func:`open_source`.
        download: Whether a missing dataset may be downloaded.
        option: What allows downloads in the command at hand, for errors.

    Raises:
        MissingError: if there is no such folder or file.
        InputError: if it cannot be read.

    Example:
        >>> sorted(find_splits("digits"))
        ['test', 'train']
    """
    kind, colon, path = name.partition(":")
    if not colon or kind not in KINDS:
        return {"train", "test"}
    return set(find_local_splits(kind, path, Reading(download=download, option=option)))


def _open_digits(split: str) -> Source:
    """Return scikit-learn's 8×8 digits, one fifth held out for testing."""
    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
    chosen = train if split == "train" else test
    labels = digits.target[chosen].astype(np.int64)
    return Source(labels, [str(digit) for digit in digits.target_names], ArrayImages(images, "digit"), chosen)


@dataclass(frozen=True)
class DatasetImages:
    """Images of a dataset of torchvision, or of Hugging Face as timm reads it.

    Args:
        dataset: The dataset.
        title: What an image is called, before its number.
    """

    dataset: Any
    title: str

    def read(self, index: int) -> Image.Image | bytes:
        """Return an image, or the content of its file; timm's own way would put another in a damaged one's place."""
        if hasattr(self.dataset, "reader"):
            stream = self.dataset.reader[index][0]
            with stream:
                content: bytes = stream.read()
            return content
        image: Image.Image = self.dataset[index][0]
        return image

    def name(self, index: int) -> str:
        """Return its title and number."""
        return f"{self.title} {index}"

    def fingerprint(self, times: bool) -> str:
        """Return the hash of the pixels, or Hugging Face's fingerprint; empty where there is neither."""
        pixels = getattr(self.dataset, "data", None)
        if pixels is not None:
            return hash_parts([np.asarray(pixels)])
        return str(getattr(getattr(getattr(self.dataset, "reader", None), "dataset", None), "_fingerprint", ""))


def _open_timm(name: str, split: str, root: str, download: bool, option: str, on_error: str) -> Source:
    """Return a dataset of torchvision or Hugging Face by timm's name."""
    if name.startswith("hfds/") and not download:
        raise InputError(
            f"dataset {name!r} is read through Hugging Face's library, which asks the network; allow it with {option}."
        )
    known_errors = (RuntimeError, AssertionError, OSError, ImportError, ValueError, KeyError)  # of many kinds
    try:
        if not download:
            _check_there(name, root)
        dataset = timm.data.create_dataset(name, root=root, split=split, download=download)
    except known_errors as error:
        elsewhere = ", or set --data.root" if option == DOWNLOAD else ", or put it there"
        advice = "" if download else f"; allow it to be fetched with {option}{elsewhere}"
        raise MissingError(f"dataset {name!r} cannot be opened in {root!r}: {reason(error)}{advice}.") from error
    try:
        labels = _read_labels(dataset)
    except (TypeError, *known_errors) as error:
        raise InputError(f"dataset {name!r} has no class numbers in its {split} split: {reason(error)}.") from error
    classes = getattr(dataset, "classes", None) or _reader_classes(dataset)
    classes = [str(c) for c in classes or range(int(labels.max(initial=-1)) + 1)]
    if labels.max(initial=-1) >= len(classes):
        raise InputError(
            f"dataset {name!r} has class number {labels.max()} in its {split} split, for {len(classes)} classes."
        )
    numbers, counts = np.unique(labels, return_counts=True)
    there = are_labels([str(number) for number in numbers], counts.tolist(), f"dataset {name!r}", on_error)
    source = _source(dataset, name, split, root, labels, classes)
    return source if all(there) else source.subset(np.flatnonzero(labels >= 0))


def _source(dataset: Any, name: str, split: str, root: str, labels: np.ndarray, classes: list[str]) -> Source:
    if files := getattr(dataset, "samples", None) or getattr(dataset, "imgs", None):
        top = str(getattr(dataset, "root", root))
        return Source(labels, classes, FileImages(top, [os.path.relpath(file, top) for file, _ in files]))
    return Source(labels, classes, DatasetImages(dataset, f"{name} {split} image"))


def _check_there(name: str, root: str) -> None:
    """Refuse a dataset of torchvision for which it would make folders, also where nothing may be downloaded."""
    made = {"inaturalist": "2021_train", "inat": "2021_train", "imagenet": "train"}.get(name.lower().rpartition("/")[2])
    if not os.path.isdir(folder := os.path.join(root, made or "")):
        raise FileNotFoundError(f"there is no folder {printable(folder)}")


def _read_labels(dataset: Any) -> np.ndarray:
    """Return the class numbers (N,), without decoding images where the dataset knows them."""
    labels: Sequence[Any] | None = getattr(dataset, "targets", None)
    if labels is None and hasattr(dataset, "reader"):
        labels = list(dataset.reader.dataset[dataset.reader.label_key])
    if labels is None:
        labels = [int(dataset[i][1]) for i in range(len(dataset))]
    if isinstance(labels, list):
        labels = [-1 if label is None else label for label in labels]
    numbers = np.asarray(labels, dtype=np.int64)
    return numbers if numbers.ndim == 1 else numbers[:, 0]  # QMNIST has more than the digit


def _reader_classes(dataset: Any) -> list[str]:
    numbers = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {}
    return sorted(numbers, key=lambda name: int(numbers[name]))
