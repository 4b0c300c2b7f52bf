"""Datasets read by the Hugging Face library, without decoding: Parquet files, webdataset's tar files, the Hub.

The library copies them once into its cache (``HF_DATASETS_CACHE``), which allows random access.
"""

from __future__ import annotations

import glob
import importlib
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixmo.config.data_settings import DataSettings
from mixmo.data.decoding import explain_error
from mixmo.data.folders import read_file
from mixmo.data.labels import check_names, number_labels
from mixmo.data.messages import SILENT, log_level, logger, warn_once
from mixmo.data.sources import Source, hash_parts, number_groups, spread_indices, stamp
from mixmo.errors import InputError, MissingError, import_extra
from mixmo.escaping import printable
from mixmo.files import check_regular

IMAGES = ("image", "img", "pixel_values", "jpg", "png", "webp", "heic", "dcm")
LABELS = ("label", "labels", "fine_label", "class", "target", "cls", "json")
"""Usual names of columns, for datasets whose features do not identify them."""

GROUP = "group"
"""The usual name of the column of groups."""

CLASS_NAMES = "classes.txt"
"""A file next to shards with the class names, one per line."""

READER = "{} is read by Hugging Face's library"


@dataclass
class TableImages:
    """Undecoded images in a column of a dataset of the Hugging Face library, made of ``files``."""

    dataset: Any
    column: str
    title: str
    files: Sequence[str] = ()

    def read(self, index: int) -> bytes:
        """Return the content of an image's file."""
        cell = self.dataset[index][self.column]
        content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
        if content is None and path is not None:
            return read_file(path)
        if not isinstance(content, bytes):
            raise InputError(f"its row has no image in column {self.column}")
        return content

    def name(self, index: int) -> str:
        """Return an image's path in its tar file, or the title and its number."""
        if self._keys is None:
            return f"{self.title} image {index}"
        row = self._keys[index]
        return f"{row['__url__']}/{row['__key__']}"

    @cached_property
    def _keys(self) -> Any:
        names = ["__url__", "__key__"]  # columns of the webdataset builder
        return self.dataset.select_columns(names) if set(names) <= set(self.dataset.column_names) else None

    def fingerprint(self, times: bool) -> str:
        """Return a hash of the number of images, of some of them, and of the files' names, sizes and times."""
        stamps = [part for file in self.files for part in (os.path.basename(file), stamp(file, times))]
        count = len(self.dataset)
        return hash_parts([*stamps, str(count), *(self.read(index) for index in spread_indices(count))])


def open_table(
    dataset: Any,
    title: str,
    settings: DataSettings,
    names: Sequence[str] | None = None,
    files: Sequence[str] = (),
) -> Source:
    """Return the images of a dataset of the Hugging Face library.

    The columns are those that ``settings`` name, else those of the features Image and ClassLabel (or lists of
    ClassLabel, for several labels), else those with usual names. ``names`` are the class names, unless a ClassLabel has
    them.
    """
    if not len(dataset):
        raise MissingError(f"{printable(title)} is empty.")
    columns = _check_columns(settings.columns, dataset.column_names, title)
    image = columns.get("path") or _find_column(dataset, "Image", IMAGES, title)
    label = columns.get("label") or _find_column(dataset, "ClassLabel", LABELS, title)
    group = columns.get("group") or (GROUP if GROUP in dataset.column_names else None)
    feature = dataset.features[label]
    labels = dataset.select_columns([label])[:][label]
    if isinstance(feature, Mapping):  # of webdataset's JSON files
        labels = [row and row.get("label") for row in labels]
    numbers, classes = number_labels(labels, class_names(feature) or names, title, settings.on_error)
    check_names(classes, title)
    groups = None if group is None else read_groups(dataset, group, title)
    if type(kind := dataset.features[image]).__name__ == "Image":
        dataset = dataset.cast_column(image, type(kind)(decode=False))
    return Source(numbers, classes, TableImages(dataset, image, title, files), groups=groups).drop_unlabelled()


def _check_columns(columns: Mapping[str, str], names: Sequence[str], title: str) -> Mapping[str, str]:
    """Return ``data.columns``; refuse columns that a table lacks, and a split, which the files' names determine."""
    for role, name in columns.items():
        if role == "split":
            raise InputError(
                f"data.columns names a split, but the names of files determine the splits of {printable(title)}."
            )
        if name not in names:
            raise InputError(
                f"data.columns names the column {name!r} for {role}, but {printable(title)} has "
                f"{', '.join(map(printable, names))}."
            )
    return columns


def class_names(feature: Any) -> Sequence[str] | None:
    """Return the class names of a ClassLabel or a list of them; ``None`` for another feature."""
    return getattr(getattr(feature, "feature", feature), "names", None)  # a list's feature is that of its elements


def read_groups(dataset: Any, column: str, title: str) -> np.ndarray:
    """Return the group number of each row; refuse rows without a group."""
    values = dataset.with_format(None).select_columns([column])[:][column]
    if missing := [row for row, value in enumerate(values) if value in (None, "")]:
        raise InputError(
            f"{printable(title)}: {len(missing)} rows have no {printable(column)}, first row {missing[0]}."
        )
    return number_groups(values)


def _find_column(dataset: Any, feature: str, usual: Sequence[str], title: str) -> str:
    """Return the name of the column of a feature, or else of one with a usual name."""
    kinds = dataset.features.items()
    typed = [name for name, kind in kinds if type(kind).__name__ == feature] or [
        name for name, kind in kinds if type(getattr(kind, "feature", None)).__name__ == feature == "ClassLabel"
    ]
    columns = [name for name in usual if name in (typed or dataset.features)] or typed
    if not columns:
        raise InputError(
            f"{printable(title)} has columns {', '.join(map(printable, dataset.column_names))}; none has the type "
            f"{feature} or is named {' or '.join(usual)}."
        )
    if len(columns) > 1:
        warn_once(f"{title} has the columns {', '.join(columns)}; the first is used.")
    return columns[0]


def open_shards(kind: str, folder: Path, split: str, files: Sequence[str], settings: DataSettings) -> Source:
    """Open a split's shards in a folder: Parquet files, or tar files of the webdataset library."""
    if missing := _missing_parts(files):
        raise InputError(f"{printable(str(folder))}: {printable(missing[0])} is missing; restore it.")
    paths = [str(folder / file) for file in files]
    import_extra("datasets", "datasets", READER.format(printable(str(folder))))
    logger.info("opening %s; its images are copied once into the cache of Hugging Face's library", folder)
    try:
        absolute = [glob.escape(str(Path(path).absolute())) for path in paths]
        dataset = _call("load_dataset", str(folder), kind, data_files=absolute, split="train")
    except InputError as error:
        if damaged := [path for path in paths if _is_damaged(kind, path)]:
            raise InputError(
                f"{printable(damaged[0])} is damaged: {explain_error(error.__cause__ or error)}; repair or remove it."
            ) from error
        raise
    return open_table(dataset, f"{folder} {split}".strip(), settings, _read_class_names(folder), paths)


def _missing_parts(files: Sequence[str]) -> list[str]:
    """Return the missing files of numbered sets, such as 1-of-2 without 0-of-2.

    Example:
        >>> _missing_parts(["a-00000-of-00002.parquet", "b.parquet"])
        ['a-00001-of-00002.parquet']
    """
    expected = set[str]()
    for file in files:
        if match := re.fullmatch(r"(.*?)\d+-of-(\d{1,6})(.*?)", file):
            start, count, end = match.groups()
            expected |= {f"{start}{number:0{len(count)}}-of-{count}{end}" for number in range(int(count))}
    return sorted(expected.difference(files))


def _is_damaged(kind: str, path: str) -> bool:
    """Return whether a shard cannot be listed."""
    try:
        if kind == "parquet":
            importlib.import_module("pyarrow.parquet").read_metadata(path)
        else:
            with tarfile.open(path) as tar:
                tar.getmembers()
    except Exception:  # damaged bytes may raise anything
        return True
    return False


def _read_class_names(folder: Path) -> list[str] | None:
    try:
        check_regular(folder / CLASS_NAMES)
        return (folder / CLASS_NAMES).read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise InputError(f"{folder / CLASS_NAMES} cannot be read: {explain_error(error)}.") from error


def list_hub_splits(name: str) -> list[str]:
    """Return the names of the splits of a dataset on the Hugging Face Hub or in a folder."""
    return list(_call("get_dataset_split_names", f"dataset 'hfds/{name}'", name))


def open_hub(name: str, split: str, settings: DataSettings) -> Source:
    """Open a split, by the dataset's name for it, of a dataset on the Hugging Face Hub or in a folder."""
    dataset = _call("load_dataset", f"dataset 'hfds/{name}'", name, split=split)
    return open_table(dataset, f"hfds/{name} {split}", settings)


def _call(function: str, what: str, *arguments: Any, **options: Any) -> Any:
    """Call a function of the library silently; errors name what is read."""
    datasets = import_extra("datasets", "datasets", READER.format(printable(what)))
    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()
    try:
        with log_level(SILENT, "datasets"):
            return getattr(datasets, function)(*arguments, **options)
    except Exception as error:  # of many kinds; a DatasetGenerationError only wraps its cause
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
        raise InputError(f"{printable(what)} cannot be read: {explain_error(cause or error)}.") from cause or error
    finally:
        if shown:
            datasets.utils.enable_progress_bars()
