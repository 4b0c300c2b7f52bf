"""Labels, class names and groups of images passed from Python."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.datasets import VisionDataset
from torchvision.datasets.vision import StandardTransform

from mixmo.data.hugging_face import GROUP, LABELS, class_names, read_groups
from mixmo.data.messages import list_some, warn_once
from mixmo.errors import InputError


def read_labels(dataset: Any, known: Mapping[int, Any], sample: Callable[[int], Any]) -> list[Any]:
    """Return all labels: the Dataset's list if it agrees with the known ones, else the label of each sample."""
    listed, count = _find_labels(dataset), len(dataset)
    if listed is not None and all(np.array_equal(listed[i], as_python(label)) for i, label in known.items()):
        return listed
    if count > 10_000:
        warn_once(f"reading all {count} samples for their labels; an attribute `targets` would avoid that.")
    return [as_python(sample(index).label) for index in range(count)]


def _find_labels(dataset: Any) -> list[Any] | None:
    """Return a Dataset's labels, one for each image; ``None`` if it has no list of them, or may transform them."""
    if isinstance(dataset, Subset):
        labels = _find_labels(dataset.dataset)
        return None if labels is None else [labels[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_find_labels(part) for part in dataset.datasets]
        return None if None in parts else [label for part in parts for label in part or ()]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if isinstance(dataset, VisionDataset) and not isinstance(dataset.transforms, StandardTransform | None):
        return None  # transforms of images and labels together
    listed = getattr(dataset, "targets", None)
    listed = getattr(dataset, "labels", None) if listed is None else listed
    if isinstance(dataset, TensorDataset):
        listed = dataset.tensors[1]
    return as_list(listed) if isinstance(listed, Collection) and len(listed) == len(dataset) else None


def find_class_names(dataset: Any, split: str) -> list[str] | None:
    """Return a Dataset's class names; ``None`` if it has none."""
    if isinstance(dataset, Subset):
        return find_class_names(dataset.dataset, split)
    if isinstance(dataset, ConcatDataset):
        parts = [names for part in dataset.datasets if (names := find_class_names(part, split)) is not None]
        if other := next((names for names in parts if names != parts[0]), None):
            raise InputError(
                f"{split} joins Datasets with different classes, {list_some(parts[0])}, and {list_some(other)}; give "
                "all of them one list, with class numbers that refer to it."
            )
        return parts[0] if parts else None
    if isinstance(features := getattr(dataset, "features", None), Mapping):  # of the Hugging Face library
        column = next((column for column in LABELS if column in features), None)  # as DatasetImages takes the label
        named = None if column is None else class_names(features[column])
        return None if named is None else list(named)
    listed = getattr(dataset, "classes", None)
    return list(listed) if isinstance(listed, Sequence) and all(isinstance(name, str) for name in listed) else None


def find_groups(dataset: Any, split: str) -> np.ndarray | None:
    """Return the group numbers (N,) in a column of a dataset of the Hugging Face library, if it has one."""
    if isinstance(dataset, Subset):
        groups = find_groups(dataset.dataset, split)
        return None if groups is None else groups[list(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [find_groups(part, split) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        if 0 < len(known) < len(parts):
            raise InputError(f"{split} joins Datasets with and without groups; give all of them a column {GROUP!r}.")
        return np.concatenate(known) if known else None
    features = getattr(dataset, "features", None)
    return read_groups(dataset, GROUP, split) if isinstance(features, Mapping) and GROUP in features else None


def match_numbers(labels: list[Any], classes: Sequence[str] | None) -> list[Any]:
    """Return labels with class numbers replaced by class names, if all names are numbers themselves.

    Example:
        >>> match_numbers([2, 10], ["1", "10", "2"]), match_numbers([2, 0], ["ape", "bat", "cow"])
        (['2', '10'], [2, 0])
    """
    names = {int(name): name for name in classes or () if name.isdecimal()}
    if classes is None or len(names) < len(classes):
        return labels

    def name(label: Any) -> Any:
        if isinstance(label, list):
            return [name(each) for each in label]
        return names.get(label, str(label)) if type(label) is int else label

    return [name(label) for label in labels]


def as_list(labels: Any) -> list[Any]:
    """Return labels as Python values, or arrays of 0 and 1."""
    numbers = isinstance(labels, np.ndarray | Tensor) and labels.ndim == 1
    return list(labels.tolist()) if numbers else [as_python(label) for label in labels]


def as_python(label: Any) -> Any:
    """Return a label as a Python value, or several as an array of 0 and 1 or a list of Python values."""
    if isinstance(label, list | tuple | set):
        return [as_python(each) for each in label]
    if isinstance(label, np.generic | np.ndarray | Tensor):
        return label.item() if label.ndim == 0 else np.asarray(label)
    return label
