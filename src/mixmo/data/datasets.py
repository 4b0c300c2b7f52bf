"""Datasets by name, and their splits."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mixmo.config.data_settings import DataSettings
from mixmo.data.archives import ZIP, unpack
from mixmo.data.decoding import explain_error
from mixmo.data.folders import is_hidden, open_class_folders
from mixmo.data.given import GIVEN
from mixmo.data.hugging_face import list_hub_splits, open_hub, open_shards
from mixmo.data.labels import check_look_alike
from mixmo.data.messages import list_some, warn_once
from mixmo.data.sources import ArrayImages, Source
from mixmo.data.tables import open_rows, read_table
from mixmo.data.torchvision import open_torchvision
from mixmo.errors import InputError, MissingError
from mixmo.escaping import printable
from mixmo.files import describe_working_folder

DOWNLOAD = "data.download: true"
"""The option of ``mixmo fit`` that allows downloads; commands on a run have another."""

SPLITS = ("train", "test", "val", "valid", "validation")
"""Names of splits in folders, archives, shards and tables; the last three mean the same."""

LIKE_SPLIT = re.compile(r"(train(ing)?|test(ing)?|val(id(ation)?)?)([ _-]?(set|images?|data))?", re.IGNORECASE)
"""Names of folders that are probably splits rather than classes."""

TAR = r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz)"
SHARDS = {"webdataset": re.compile(rf".*{TAR}"), "parquet": re.compile(r".*\.parquet")}
"""Patterns of the file names of shards."""

TABLES = ("csv", "webdataset", "parquet")
"""Kinds of datasets whose images have columns."""

Openers = dict[str, Callable[[], Source]]
"""Functions that open the splits, by name; images without a split have an empty name."""


class NamedDataset:
    """A dataset opened by name; its splits are looked up once.

    Args:
        name: ``digits`` (scikit-learn's, 8×8); ``folder:PATH``, a folder or zip file with ``train`` and ``test`` (or
            ``val``), which are folders of class folders or tar files of these (``train.tar``, ``train-0.tar.gz`` …);
            ``csv:PATH``, a table of paths, labels and splits; ``webdataset:PATH``, tar shards; ``parquet:PATH``,
            Parquet files; ``hfds/NAME``, a dataset on the Hugging Face Hub; or ``torch/cifar10``, a dataset of
            torchvision by timm's name.
        settings: How to read it: ``root``, ``download``, ``on_error``, ``multi_label`` and ``columns``.
        option: The option that allows downloads in this command, for errors.

    Example:
        >>> digits = NamedDataset("digits")
        >>> sorted(digits.splits), len(digits.open("test"))
        (['test', 'train'], 360)
    """

    def __init__(self, name: str, settings: DataSettings | None = None, option: str = DOWNLOAD) -> None:
        self.name, self._found = name, _find_splits(name, settings or DataSettings(), option)
        self._splits = _assign_roles(self._found)

    @property
    def splits(self) -> set[str]:
        """Those of ``train``, ``validation`` and ``test`` that exist; empty for class folders without splits."""
        return set(self._splits)

    def open(self, split: str, least_classes: int = 2) -> Source:
        """Open one of :attr:`splits`, or ``all`` images of a dataset without splits; nothing is decoded.

        Images to train on must have ``least_classes``.
        """
        opener = self._found.get("") if split == "all" and not self._splits else self._splits.get(split)
        if opener is None:
            wanted = {"train": SPLITS[:1], "test": SPLITS[1:]}.get(split, SPLITS[2:])
            raise MissingError(
                f"{printable(self.name)} has no images for {split}: nothing in it is named {' or '.join(wanted)}."
            )
        source = opener()
        if split in ("train", "all") and len(source.classes) < least_classes:
            raise InputError(
                f"dataset {self.name!r} has one class only ({', '.join(map(printable, source.classes))}); a classifier "
                "needs at least two."
            )
        check_look_alike(source.classes, f"dataset {self.name!r}")
        if not len(source):
            raise MissingError(f"dataset {self.name!r} has no images in its {split} split.")
        return source


def takes_columns(name: str) -> bool:
    """Return whether a dataset of this name is a table, which ``data.columns`` is for."""
    return name.partition(":")[0] in TABLES or name.startswith("hfds/")


def _find_splits(name: str, settings: DataSettings, option: str) -> Openers:
    kind, colon, path = name.partition(":")
    library, _, dataset = name.partition("/")
    if settings.columns and not takes_columns(name):
        raise InputError(
            f"data.columns is for tables ({', '.join(TABLES)}, hfds); {printable(name)} has none: leave it out."
        )
    if name == "digits":
        return {split: partial(_open_digits, split) for split in ("train", "test")}
    if name == GIVEN:
        raise MissingError(
            "the images were passed from Python, as a Dataset or arrays; pass them again: mixmo.fit(…, resume=True), "
            "or mixmo.Run(…).test(…)."
        )
    if library == "torch":
        return {split: partial(open_torchvision, name, split, settings, option) for split in ("train", "test")}
    if library == "hfds":
        if not settings.download:
            raise InputError(
                f"dataset {name!r} is read by Hugging Face's library, which accesses the network; allow it with "
                f"{option}."
            )
        splits = list_hub_splits(dataset)
        if len(splits) == 1:
            return {"": partial(open_hub, dataset, splits[0], settings)}
        return {split: partial(open_hub, dataset, split, settings) for split in splits}
    find = {"folder": _find_folders, "csv": _find_rows, "webdataset": _find_shards, "parquet": _find_shards}.get(kind)
    if not colon or find is None:
        raise InputError(
            f"unknown dataset {name!r}; give digits, folder:PATH, csv:PATH, webdataset:PATH, parquet:PATH, torch/… or "
            "hfds/…."
        )
    return find(Path(os.path.expanduser(path)), kind, settings)


def _assign_roles(found: Openers) -> Openers:
    """Return the splits by role; ``val`` is the test set if there is no other."""
    roles = {"train": found["train"]} if "train" in found else {}
    others = [name for name in SPLITS[1:] if name in found]
    if others:
        roles["test"] = found[others[0]]
    if "train" in roles and others[:1] == ["test"] and len(others) > 1:
        roles["validation"] = found[others[1]]
    return roles


def _open_digits(split: str) -> Source:
    """Open scikit-learn's 8×8 digits, one fifth of them held out for testing."""
    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
    chosen = train if split == "train" else test
    labels = digits.target[chosen].astype(np.int64)
    return Source(labels, [str(digit) for digit in digits.target_names], ArrayImages(images, "digit"), chosen)


def _find_rows(path: Path, kind: str, settings: DataSettings) -> Openers:
    table = read_table(path, settings)
    if unknown := sorted(table.keys() - {"", *SPLITS}):
        raise InputError(f"{printable(str(path))} has a split named {printable(unknown[0])}; use train, test and val.")
    arguments = settings.on_error, settings.multi_label
    return {split: partial(open_rows, path, rows, *arguments) for split, rows in (table or {"": []}).items()}


def _find_folders(path: Path, kind: str, settings: DataSettings) -> Openers:
    if path.suffix.lower() == ZIP and path.is_file():
        root, title = unpack([path]) / path.name, path
        names = [name for name in os.listdir(root) if not is_hidden(name)]
        if len(names) == 1 and any(entry.is_dir() for entry in (root / names[0]).glob("*")):
            root, title = root / names[0], title / names[0]
    else:
        root = title = _check_folder(path)
    openers: Openers = {"": partial(open_class_folders, root, str(title))}
    folders, files = _list_folder(root)
    others = [name for name in folders if name.lower() not in SPLITS]  # next to them, Train is a class
    for split in SPLITS:
        named = [name for name in folders if name.lower() == split]
        named = [name for name in named if name == split or (not others and _list_folder(root / name)[0])]
        if len(named) > 1:
            raise InputError(f"{printable(str(title))} has the folders {' and '.join(named)}; merge them.")
        if named:
            openers[split] = partial(open_class_folders, root / named[0], str(title / named[0]))
        elif archives := [root / name for name in files if re.fullmatch(rf"(?i:{split})(-.+)?{TAR}", name)]:
            openers[split] = partial(_open_archives, archives, split)
    if len(openers) > 1 and others:
        warn_once(f"{printable(str(title))} has splits; left out the folders {list_some(others)}")
    if len(openers) == 1 and folders and all(LIKE_SPLIT.fullmatch(name) for name in folders):
        raise InputError(
            f"{printable(str(title))} has the folders {', '.join(folders)}, which look like splits rather than "
            f"classes; rename them {', '.join(SPLITS[:2])} or {SPLITS[2]}, with one folder in them for each class."
        )
    return openers


def _check_folder(path: Path) -> Path:
    if not path.is_dir():
        raise MissingError(f"there is no dataset folder {printable(str(path))}{describe_working_folder(path)}.")
    return path


def _list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and files in a folder, without hidden folders."""
    try:
        with os.scandir(folder) as entries:
            known = sorted((entry.name, entry.is_dir(), entry.is_file()) for entry in entries)
    except OSError as error:
        raise InputError(f"folder {printable(str(folder))} cannot be listed: {explain_error(error)}.") from error
    folders = [name for name, is_folder, _ in known if is_folder and not is_hidden(name)]
    return folders, [name for name, _, is_file in known if is_file]


def _open_archives(archives: list[Path], split: str) -> Source:
    names = [archive.name for archive in archives]
    tops = {split, *(name.partition(".")[0] for name in names)}
    return open_class_folders(unpack(archives), str(archives[0].parent), names, tops)


def _find_shards(path: Path, kind: str, settings: DataSettings) -> Openers:
    folder = path.parent if path.is_file() else _check_folder(path)
    files = [path] if path.is_file() else sorted(folder.rglob("*"))
    names = [file.relative_to(folder) for file in files if SHARDS[kind].fullmatch(file.name)]
    names = [name for name in names if not any(map(is_hidden, name.parts)) and (folder / name).is_file()]  # not a pipe
    if not names:
        raise MissingError(f"there are no {kind} files in {printable(str(path))}.")
    splits = group_by_split(name.as_posix() for name in names)
    if len(splits) > 1 and (unnamed := splits.pop("", None)):
        some = list_some(unnamed)
        warn_once(f"{printable(str(path))}: left out {len(unnamed)} files that name no split: {some}")
    return {name: partial(open_shards, kind, folder, name, each, settings) for name, each in splits.items()}


def group_by_split(files: Iterable[str]) -> dict[str, list[str]]:
    """Group files by the split that their paths name; those that name none are under an empty name.

    Example:
        >>> group_by_split(["imagenet-train-0000.tar", "data/validation/0.tar", "x.tar"])
        {'train': ['imagenet-train-0000.tar'], 'validation': ['data/validation/0.tar'], '': ['x.tar']}
    """
    groups: dict[str, list[str]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.lower())
        groups.setdefault(next((word for word in words if word in SPLITS), ""), []).append(file)
    return groups
