"""Datasets by name, and their splits."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mixmo.config.data_settings import DataSettings
from mixmo.data.archives import ZIP, unpack
from mixmo.data.decoding import explain_error
from mixmo.data.folders import is_hidden, open_class_folders
from mixmo.data.given import GIVEN
from mixmo.data.hugging_face import hub_splits, open_hub, open_shards
from mixmo.data.labels import check_look_alike
from mixmo.data.sources import ArrayImages, Source
from mixmo.data.tables import open_rows, read_table
from mixmo.data.torchvision import open_torchvision
from mixmo.errors import InputError, MissingError
from mixmo.escaping import printable

DOWNLOAD = "--data.download true"
"""The option that allows downloads for a recipe; commands on a run have their own."""

SPLITS = ("train", "test", "val", "valid", "validation")
"""Names of splits in folders, archives, shards and tables; the last three are synonyms."""

TAR = r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz)"
SHARDS = {"webdataset": re.compile(rf".*{TAR}"), "parquet": re.compile(r".*\.parquet")}
"""File names of each kind of shards."""

Parts = dict[str, Callable[[], Source]]
"""How each split is opened; an empty name stands for images without a split."""


class NamedDataset:
    """A dataset by name; its splits are looked up once.

    Args:
        name: ``digits`` (scikit-learn's, 8×8); ``folder:PATH`` with PATH/train and PATH/test (or val), each class
            folders, or tar files of such (``train.tar``, ``train-0.tar.gz`` …), or PATH a zip file of such;
            ``csv:PATH``, a table of paths, labels and splits; ``webdataset:PATH``, tar shards; ``parquet:PATH``,
            Parquet files; ``hfds/NAME``, a dataset of the Hugging Face Hub; or one of torchvision's, as timm calls it:
            ``torch/cifar10``.
        how: Settings of how it is read: ``root``, ``download``, ``on_error`` and ``multi_label``.
        option: The option that allows downloads in this command, for errors.

    Example:
        >>> digits = NamedDataset("digits")
        >>> sorted(digits.splits), len(digits.open("test"))
        (['test', 'train'], 360)
    """

    def __init__(self, name: str, how: DataSettings | None = None, option: str = DOWNLOAD) -> None:
        self.name, self._found = name, _find_parts(name, how or DataSettings(), option)
        self._parts = _assign_roles(self._found)

    @property
    def splits(self) -> set[str]:
        """Which of ``train``, ``validation`` and ``test`` it has; empty for class folders without splits."""
        return set(self._parts)

    def open(self, split: str) -> Source:
        """Return the images of a split; none is decoded.

        It is ``train`` or ``test``, ``validation`` where there are all three, or ``all`` where there are none.
        """
        opener = self._found.get("") if split == "all" and not self._parts else self._parts.get(split)
        if opener is None:
            wanted = {"train": SPLITS[:1], "test": SPLITS[1:]}.get(split, SPLITS[2:])
            raise MissingError(
                f"{printable(self.name)} has no images for {split}: nothing in it is named {' or '.join(wanted)}."
            )
        source = opener()
        if split in ("train", "all") and len(source.classes) < 2:
            raise InputError(
                f"dataset {self.name!r} has one class only ({', '.join(map(printable, source.classes))}); a classifier "
                "needs two or more."
            )
        check_look_alike(source.classes, f"dataset {self.name!r}")
        if not len(source):
            raise MissingError(f"dataset {self.name!r} has no images in its {split} split.")
        return source


def open_source(name: str, split: str, **how: Any) -> Source:
    """Return the images of a split of a :class:`NamedDataset`, read by these settings."""
    return NamedDataset(name, DataSettings(**how)).open(split)


def _find_parts(name: str, how: DataSettings, option: str) -> Parts:
    """Return the functions that open the splits, by name."""
    if name == "digits":
        return {split: partial(_open_digits, split) for split in ("train", "test")}
    if name == GIVEN:
        raise MissingError(
            "the images were given by a program, as a Dataset or arrays; give them again: mixmo.fit(…, resume=True), "
            "or mixmo.Run(…).test(…)."
        )
    library, _, dataset = name.partition("/")
    if library == "torch":
        return {split: partial(open_torchvision, name, split, how, option) for split in ("train", "test")}
    if library == "hfds":
        if not how.download:
            raise InputError(
                f"dataset {name!r} is read through Hugging Face's library, which accesses the network; allow it with "
                f"{option}."
            )
        splits = hub_splits(dataset)
        if len(splits) == 1:
            return {"": partial(open_hub, dataset, splits[0], how.on_error)}
        return {split: partial(open_hub, dataset, split, how.on_error) for split in splits}
    kind, colon, path = name.partition(":")
    find = {"folder": _find_folders, "csv": _find_rows, "webdataset": _find_shards, "parquet": _find_shards}.get(kind)
    if not colon or find is None:
        raise InputError(
            f"unknown dataset {name!r}; it is digits, folder:PATH, csv:PATH, webdataset:PATH, parquet:PATH, torch/… or "
            "hfds/…."
        )
    return find(Path(os.path.expanduser(path)), kind, how)


def _assign_roles(found: Parts) -> Parts:
    """Return splits by their roles: ``val`` is the test set if there is no other."""
    parts = {"train": found["train"]} if "train" in found else {}
    others = [name for name in SPLITS[1:] if name in found]
    if others:
        parts["test"] = found[others[0]]
    if "train" in parts and others[:1] == ["test"] and len(others) > 1:
        parts["validation"] = found[others[1]]
    return parts


def _open_digits(split: str) -> Source:
    """Return scikit-learn's 8×8 digits, one fifth held out for testing."""
    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
    chosen = train if split == "train" else test
    labels = digits.target[chosen].astype(np.int64)
    return Source(labels, [str(digit) for digit in digits.target_names], ArrayImages(images, "digit"), chosen)


def _find_rows(path: Path, kind: str, how: DataSettings) -> Parts:
    table = read_table(path, how.multi_label, how.columns)
    if unknown := sorted(table.keys() - {"", *SPLITS}):
        raise InputError(
            f"{printable(str(path))} has a split named {printable(unknown[0])}; they are train, test and val."
        )
    arguments = how.on_error, how.multi_label
    return {split: partial(open_rows, path, rows, *arguments) for split, rows in (table or {"": []}).items()}


def _find_folders(path: Path, kind: str, how: DataSettings) -> Parts:
    if path.suffix.lower() == ZIP and path.is_file():
        root, title = unpack([path]) / path.name, path
        inside = [name for name in os.listdir(root) if not is_hidden(name)]
        if len(inside) == 1 and any(each.is_dir() for each in (root / inside[0]).iterdir()):
            root, title = root / inside[0], title / inside[0]
    else:
        root = title = _check_folder(path)
    found: Parts = {"": partial(open_class_folders, root, str(title))}
    for split in SPLITS:
        if (root / split).is_dir():
            found[split] = partial(open_class_folders, root / split, str(title / split))
        elif archives := _find_archives(root, split):
            found[split] = partial(_open_archives, archives, split)
    return found


def _check_folder(path: Path) -> Path:
    if not path.is_dir():
        raise MissingError(f"there is no dataset folder {printable(str(path))}.")
    return path


def _find_archives(folder: Path, split: str) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"folder {printable(str(folder))} cannot be listed: {explain_error(error)}.") from error
    found = [folder / name for name in names if re.fullmatch(rf"{split}(-.+)?{TAR}", name)]
    return [file for file in found if file.is_file()]


def _open_archives(archives: list[Path], split: str) -> Source:
    names = [archive.name for archive in archives]
    tops = {split, *(name.partition(".")[0] for name in names)}
    return open_class_folders(unpack(archives), str(archives[0].parent), names, tops)


def _find_shards(path: Path, kind: str, how: DataSettings) -> Parts:
    folder = path.parent if path.is_file() else _check_folder(path)
    files = [path] if path.is_file() else sorted(folder.rglob("*"))
    named = [file for file in files if SHARDS[kind].fullmatch(file.name) and not is_hidden(file.name)]
    found = [file for file in named if file.is_file()]  # not a pipe
    if not found:
        raise MissingError(f"there are no {kind} files in {printable(str(path))}.")
    splits = by_split(file.relative_to(folder).as_posix() for file in found)
    return {split: partial(open_shards, kind, folder, split, own, how.on_error) for split, own in splits.items()}


def by_split(files: Iterable[str]) -> dict[str, list[str]]:
    """Return files by the split named in their paths below the dataset's folder; the others under an empty name.

    Example:
        >>> by_split(["imagenet-train-0000.tar", "data/validation/0.tar", "x.tar"])
        {'train': ['imagenet-train-0000.tar'], 'validation': ['data/validation/0.tar'], '': ['x.tar']}
    """
    found: dict[str, list[str]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.lower())
        found.setdefault(next((word for word in words if word in SPLITS), ""), []).append(file)
    return found
