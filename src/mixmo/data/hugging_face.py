"""Datasets read by the Hugging Face library: Parquet files, webdataset's tar files, the Hub; images undecoded.

The library copies them once into its cache (``HF_DATASETS_CACHE``), where any image can be read at any time.
"""

from __future__ import annotations

import glob
import importlib
import logging
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mixmo.data.decoding import explain_error
from mixmo.data.folders import read_file
from mixmo.data.labels import number_labels
from mixmo.data.messages import logger, warn_once
from mixmo.data.sources import Source, hash_parts, spread_indices, stamp
from mixmo.errors import InputError, MissingError, import_extra
from mixmo.escaping import printable
from mixmo.files import check_regular

IMAGES = ("image", "img", "pixel_values", "jpg", "png", "webp", "heic", "dcm")
LABELS = ("label", "labels", "fine_label", "class", "target", "cls", "json")
"""Usual names of columns, where the features do not identify them."""

CLASS_NAMES = "classes.txt"
"""A file next to shards with the class names, one per line."""

READER = "{} is read by Hugging Face's library"


@dataclass
class TableImages:
    """Images in a column of a dataset of the Hugging Face library, undecoded; ``files`` are those it was made of."""

    dataset: Any
    column: str
    title: str
    files: Sequence[str] = ()

    def read(self, index: int) -> bytes:
        """Return the content of an image's file."""
        found = self.dataset[index][self.column]
        content, path = (found.get("bytes"), found.get("path")) if isinstance(found, Mapping) else (found, None)
        if content is None and path is not None:
            return read_file(path)
        if not isinstance(content, bytes):
            raise InputError(f"its row has no content of an image in column {self.column}")
        return content

    def name(self, index: int) -> str:
        """Return an image's path in its tar file, or the title and its number."""
        if self._keys is None:
            return f"{self.title} image {index}"
        row = self._keys[index]
        return f"{row['__url__']}/{row['__key__']}"

    @cached_property
    def _keys(self) -> Any:
        names = ["__url__", "__key__"]  # as the builder for webdataset calls them
        return self.dataset.select_columns(names) if set(names) <= set(self.dataset.column_names) else None

    def fingerprint(self, times: bool) -> str:
        """Return a hash of how many images there are, of some of them, and of the files' names, sizes and times."""
        stamps = [part for file in self.files for part in (os.path.basename(file), stamp(file, times))]
        count = len(self.dataset)
        return hash_parts([*stamps, str(count), *(self.read(index) for index in spread_indices(count))])


def open_table(
    dataset: Any,
    title: str,
    on_error: str = "raise",
    names: Sequence[str] | None = None,
    files: Sequence[str] = (),
) -> Source:
    """Return the images of a dataset of the Hugging Face library.

    The columns of images and labels are those of features Image and ClassLabel (or lists of it: several labels), or
    those with usual names. ``names`` are those of the classes, where no ClassLabel has them.
    """
    if not len(dataset):
        raise MissingError(f"{printable(title)} is empty.")
    image, label = _find_column(dataset, "Image", IMAGES, title), _find_column(dataset, "ClassLabel", LABELS, title)
    feature = dataset.features[label]
    labels = dataset.select_columns([label])[:][label]
    if isinstance(feature, Mapping):  # of webdataset's JSON files
        labels = [row and row.get("label") for row in labels]
    known = getattr(getattr(feature, "feature", feature), "names", names)  # of a list, its elements' names
    numbers, classes = number_labels(labels, known, title, on_error)
    if type(kind := dataset.features[image]).__name__ == "Image":
        dataset = dataset.cast_column(image, type(kind)(decode=False))
    return Source(numbers, classes, TableImages(dataset, image, title, files)).drop_unlabelled()


def _find_column(dataset: Any, feature: str, usual: Sequence[str], title: str) -> str:
    """Return the column of a feature, or one with a usual name."""
    kinds = dataset.features.items()
    noted = [name for name, kind in kinds if type(kind).__name__ == feature] or [
        name for name, kind in kinds if type(getattr(kind, "feature", None)).__name__ == feature == "ClassLabel"
    ]
    found = [name for name in usual if name in (noted or dataset.features)] or noted
    if not found:
        raise InputError(
            f"{printable(title)} has columns {', '.join(map(printable, dataset.column_names))}; none is noted as "
            f"{feature}, or named {' or '.join(usual)}."
        )
    if len(found) > 1:
        warn_once(f"of the columns {', '.join(found)} of {title} the first is taken.")
    return found[0]


def open_shards(kind: str, folder: Path, split: str, files: Sequence[str], on_error: str) -> Source:
    """Return the images of a split's Parquet files in a folder, or tar files as the webdataset library writes them."""
    if missing := _missing_parts(files):
        raise InputError(f"{printable(str(folder))}: {printable(missing[0])} is missing; bring it back.")
    paths = [str(folder / file) for file in files]
    import_extra("datasets", "datasets", READER.format(printable(str(folder))))
    logger.info("opening %s; the first time its images are copied into the cache of Hugging Face's library", folder)
    try:
        absolute = [glob.escape(str(Path(path).absolute())) for path in paths]
        dataset = _call("load_dataset", str(folder), kind, data_files=absolute, split="train")
    except InputError as error:
        if damaged := [path for path in paths if _is_damaged(kind, path)]:
            raise InputError(
                f"{printable(damaged[0])} is damaged: {explain_error(error.__cause__ or error)}; repair or remove it."
            ) from error
        raise
    return open_table(dataset, f"{folder} {split}".strip(), on_error, _read_class_names(folder), paths)


def _missing_parts(files: Sequence[str]) -> list[str]:
    """Return the missing files that the others' names imply.

    Example:
        >>> _missing_parts(["a-00000-of-00002.parquet", "b.parquet"])
        ['a-00001-of-00002.parquet']
    """
    wanted = set[str]()
    for file in files:
        if found := re.fullmatch(r"(.*?)\d+-of-(\d{1,6})(.*?)", file):
            start, count, end = found.groups()
            wanted |= {f"{start}{number:0{len(count)}}-of-{count}{end}" for number in range(int(count))}
    return sorted(wanted.difference(files))


def _is_damaged(kind: str, path: str) -> bool:
    """Return whether a file cannot be listed."""
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
        return (folder / CLASS_NAMES).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise InputError(f"{folder / CLASS_NAMES} cannot be read: {explain_error(error)}.") from error


def hub_splits(name: str) -> list[str]:
    """Return the names of the splits of a dataset on the Hugging Face Hub, or in a folder."""
    return list(_call("get_dataset_split_names", f"dataset 'hfds/{name}'", name))


def open_hub(name: str, split: str, on_error: str) -> Source:
    """Return a split, as the dataset calls it, of a dataset on the Hugging Face Hub, or in a folder."""
    dataset = _call("load_dataset", f"dataset 'hfds/{name}'", name, split=split)
    return open_table(dataset, f"hfds/{name} {split}", on_error)


def _call(function: str, what: str, *arguments: Any, **options: Any) -> Any:
    """Call a function of the library silently; errors name what is read."""
    datasets = import_extra("datasets", "datasets", READER.format(printable(what)))
    log, shown = logging.getLogger("datasets"), not datasets.utils.are_progress_bars_disabled()
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    datasets.utils.disable_progress_bars()
    try:
        return getattr(datasets, function)(*arguments, **options)
    except Exception as error:  # of many kinds; a DatasetGenerationError only wraps its cause
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
        raise InputError(f"{printable(what)} cannot be read: {explain_error(cause or error)}.") from cause or error
    finally:
        log.setLevel(level)
        if shown:
            datasets.utils.enable_progress_bars()
