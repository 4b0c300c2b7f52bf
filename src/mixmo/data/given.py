"""Images passed from Python: Datasets, arrays, tensors, Hugging Face datasets."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from mixmo.data.decoding import COLOURS
from mixmo.data.hugging_face import IMAGES, LABELS, open_table
from mixmo.data.labels import number_labels
from mixmo.data.messages import warn_once
from mixmo.data.sources import ArrayImages, Source, hash_parts, number_groups, spread_indices
from mixmo.errors import InputError
from mixmo.header import MOST_CHANNELS

GIVEN = "given"
"""The name of a dataset passed from Python; it cannot be opened by name."""


class Sample(NamedTuple):
    """A Dataset's image (PIL, the content of a file, an array or a tensor) with its class number or name."""

    image: Any
    label: Any


@dataclass
class DatasetImages:
    """The images of a map-style Dataset; their names are the title and a number.

    ``prepared`` images are passed to the network as the Dataset returns them, and requested once for each copy.
    """

    dataset: Any
    title: str
    prepared: bool = False

    one_by_one = True
    """Read in one thread: a user's Dataset may not be thread-safe."""

    def read(self, index: int) -> Image.Image | np.ndarray | bytes:
        """Return an image, an array of its pixels, or the content of its file."""
        image = self.sample(index).image
        return image if isinstance(image, bytes | Image.Image) else as_pixels(image, self.name(index))

    def sample(self, index: int, seed: int = 0) -> Sample:
        """Return a sample; ``seed`` seeds the global generators that its transforms draw from."""
        with seed_globals(seed):
            sample = self.dataset[index]
        what = f"a {type(sample).__name__}"
        if isinstance(sample, Mapping):
            keys = [[key for key in usual if key in sample] for usual in (IMAGES, LABELS[:-1])]  # the last is of shards
            if all(keys):
                return Sample(sample[keys[0][0]], sample[keys[1][0]])
            what = f"a mapping with the keys {', '.join(map(str, sample))}"
        elif isinstance(sample, tuple | list):
            if len(sample) == 2:
                return Sample(*sample)
            what += f" of length {len(sample)}"
        raise InputError(f"{self.name(index)} of the Dataset is {what}; it has to be a pair (image, label).")

    def name(self, index: int) -> str:
        """Return its title and number."""
        return f"{self.title} {index}"

    def fingerprint(self, times: bool) -> str:
        """Return a hash of the number of images and of up to eight of them."""
        count = len(self.dataset)
        return hash_parts([str(count), *(_raw_bytes(self, index, 0) for index in spread_indices(count))])


def open_given(given: Any, split: str, classes: Sequence[str] | None = None) -> Source:
    """Return a split's images, passed from Python, as a source; all labels are read, but only a few images.

    ``given`` is a map-style Dataset of (image, label) with PIL, array or tensor images; a pair of arrays or tensors, N
    images of integers (H, W), (H, W, C) or (C, H, W) and N labels; a dataset of the Hugging Face library; or a
    DataLoader of one of these. A label is a class number or name; several labels are an array or tensor (K,) of 0 and
    1, or a list of class numbers or names. ``classes`` are the class names of a Dataset or arrays without names.

    Example:
        >>> source = open_given((np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1]), "train")
        >>> source.classes, source.read(2).shape
        (['0', '1'], (8, 8))
    """
    if isinstance(given, DataLoader):
        warn_once(f"{split} is a DataLoader; only its dataset is used: mixmo draws its own batches.")
        given = given.dataset
    if isinstance(given, tuple | list) and len(given) == 2 and not isinstance(given[0], tuple | list):
        return _open_arrays(given[0], given[1], split, classes)
    if isinstance(given, IterableDataset) or not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        raise InputError(
            f"{split} is a {type(given).__name__}; give a map-style Dataset, with __getitem__ and __len__, a pair of "
            "arrays (images, labels), or the name of a dataset."
        )
    if not len(given):
        raise InputError(f"{split} is empty: its Dataset has no images.")
    if _is_image_table(given):
        return open_table(given, split)
    images = DatasetImages(given, f"{split} image")
    samples = {index: images.sample(index) for index in spread_indices(len(given))}
    for index, sample in samples.items():
        _check_image(sample.image, images.name(index))
    images.prepared = is_float(samples[0].image) or _is_random(images, samples)
    for index, sample in samples.items() if images.prepared else ():
        if np.shape(sample.image) != np.shape(samples[0].image):
            raise InputError(
                f"{images.name(index)} has shape {np.shape(sample.image)}, but the first one "
                f"{np.shape(samples[0].image)}; resize all to one size in the Dataset's transforms."
            )
    labels, names = number_labels(_read_labels(images, samples), _find_class_names(given) or classes, split)
    return Source(labels, names, images)


def _open_arrays(images: Any, labels: Any, split: str, classes: Sequence[str] | None) -> Source:
    if len(images) != len(labels) or not len(images):
        raise InputError(f"there are {len(images)} {split} images and {len(labels)} labels; give one for each image.")
    numbers, names = number_labels(_as_list(labels), classes, split)
    if is_float(images) and len(images.shape) == 4:
        source = open_given(TensorDataset(torch.as_tensor(images), torch.from_numpy(numbers)), split)
        return replace(source, labels=numbers, classes=names)
    pixels = np.stack([as_pixels(each, f"{split} image {number}") for number, each in enumerate(images)])
    return Source(numbers, names, ArrayImages(pixels, f"{split} image"))


def add_groups(source: Source, groups: Any) -> Source:
    """Group the images of a source by N numbers or names, such as patients: equal values form one group.

    Example:
        >>> source = open_given((np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1]), "train")
        >>> groups = add_groups(source, ["ann", "ann", "bob", "bob"]).groups
        >>> bool(groups[0] == groups[1] != groups[2] == groups[3])
        True
    """
    if isinstance(groups, str) or not isinstance(groups, Iterable) or getattr(groups, "ndim", 1) == 0:
        raise InputError(f"groups is {groups!r}; groups are whole numbers or names, one for each training image.")
    values = groups.tolist() if isinstance(groups, np.ndarray | Tensor) else [_as_python(each) for each in groups]
    if len(values) != len(source):
        raise InputError(f"there are {len(values)} groups and {len(source)} training images; give one for each.")
    if odd := next((each for each in enumerate(values) if not isinstance(each[1], int | str)), None):
        raise InputError(f"groups[{odd[0]}] is {odd[1]!r}; groups are whole numbers or names, one for each image.")
    return replace(source, groups=number_groups(values))


def as_pixels(image: Any, name: str) -> np.ndarray:
    """Return an array or tensor of integers (H, W), (H, W, C) or (C, H, W) as an array.

    Grey, RGB and RGBA images become (H, W) or (H, W, C). Other bands are moved from first to last in tensors, but left
    in place in arrays, until the number of channels is known.

    Example:
        >>> as_pixels(torch.zeros(3, 8, 6, dtype=torch.uint8), "an image").shape
        (8, 6, 3)
        >>> as_pixels(torch.zeros(13, 8, 6, dtype=torch.uint16), "an image").shape
        (8, 6, 13)
    """
    pixels = image.numpy(force=True) if isinstance(image, Tensor) else np.asarray(image)
    if pixels.dtype.kind not in "iu" or pixels.ndim not in (2, 3):
        raise InputError(
            f"{name} has shape {pixels.shape} and type {pixels.dtype}; give PIL images, integers of shape (H, W), "
            "(H, W, C) or (C, H, W), or floats (C, H, W) that are the network's input."
        )
    if pixels.ndim == 3 and pixels.shape[2] not in COLOURS:
        bands_first = isinstance(image, Tensor) or pixels.shape[0] in COLOURS
        pixels = pixels.transpose(1, 2, 0) if bands_first else pixels
    return np.ascontiguousarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def has_float_images(source: Source) -> bool:
    """Return whether a source's images are floating point, so that they are passed to the network unchanged."""
    return isinstance(source.images, DatasetImages) and is_float(source.images.sample(0).image)


def infer_channels(source: Source) -> int:
    """Return C of a source's first image: 3 for RGBA; for arrays of other bands, the axis that differs in length."""
    images = source.images
    if isinstance(images, DatasetImages) and is_float(sample := images.sample(0).image):
        return int(sample.shape[0])
    image = source.read(0)
    if isinstance(image, np.ndarray):
        first, second, last = (*image.shape, 1)[:3]
        if last not in COLOURS and first != second != last:
            raise InputError(
                f"{source.name(0)} has shape {image.shape}; set channels (data.channels) to tell which axis has the "
                "bands."
            )
        return int({1: 1, 3: 3, 4: 3}.get(last, last if first == second else first))
    if isinstance(image, bytes):
        return 3
    return {"L": 1, "1": 1, "I;16": 1, "I": 1, "F": 1}.get(image.mode, 3)


def _check_image(image: Any, name: str) -> None:
    """Refuse what is not an image."""
    if isinstance(image, bytes | Image.Image):
        return
    if not isinstance(image, np.ndarray | Tensor):
        raise InputError(
            f"{name} of the Dataset is a {type(image).__name__}; it has to be a PIL image, an array or a tensor."
        )
    if not is_float(image):
        as_pixels(image, name)
    elif image.ndim != 3 or _has_bands_last(*image.shape) or not np.isfinite(np.asarray(image)).all():
        raise InputError(
            f"{name} has shape {tuple(image.shape)} and type {image.dtype}, with values from {float(image.min()):.3g} "
            f"to {float(image.max()):.3g}; floating-point images are finite and (C, H, W)."
        )


def _has_bands_last(first: int, second: int, last: int) -> bool:
    """Return whether a shape is evidently (H, W, C) rather than (C, H, W)."""
    return first not in COLOURS and (last in COLOURS or first == second != last or first > MOST_CHANNELS)


def is_float(image: Any) -> bool:
    """Return whether an image is a floating-point array or tensor."""
    if isinstance(image, Tensor):
        return image.is_floating_point()
    return isinstance(image, np.ndarray) and image.dtype.kind == "f"


def _is_image_table(dataset: Any) -> bool:
    """Return whether a dataset is of the Hugging Face library, with an image column that mixmo can decode."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping) or not hasattr(dataset, "cast_column") or dataset.format["type"] is not None:
        return False
    return any(type(feature).__name__ == "Image" for feature in features.values())


def _is_random(images: DatasetImages, samples: Mapping[int, Sample]) -> bool:
    """Return whether a Dataset gives different images for the same index."""
    return any(_raw_bytes(images, index, seed) != _raw_bytes(images, index, 0) for index in samples for seed in (1, 2))


def _raw_bytes(images: DatasetImages, index: int, seed: int) -> bytes:
    image = images.sample(index, seed).image
    return image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()


@contextmanager
def seed_globals(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python within the block, and restore them afterwards."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


def _read_labels(images: DatasetImages, samples: Mapping[int, Sample]) -> list[Any]:
    """Return all labels: the Dataset's list if it agrees with the samples, else the label of each sample."""
    listed, count = _find_labels(images.dataset), len(images.dataset)
    if listed is not None and len(listed) == count:
        values = _as_list(listed)
        if all(np.array_equal(values[index], _as_python(sample.label)) for index, sample in samples.items()):
            return values
    if count > 10_000:
        warn_once(f"reading all {count} samples for their labels; an attribute `targets` would avoid that.")
    return [_as_python(images.sample(index).label) for index in range(count)]


def _find_labels(dataset: Any) -> Any:
    """Return a Dataset's list of labels; ``None`` if it has none."""
    if isinstance(dataset, Subset):
        labels = _find_labels(dataset.dataset)
        return None if labels is None else [_as_python(labels[index]) for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_find_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [_as_python(each) for part in parts for each in part]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1]
    labels = getattr(dataset, "targets", None)
    return getattr(dataset, "labels", None) if labels is None else labels


def _find_class_names(dataset: Any) -> list[str] | None:
    """Return a Dataset's class names; ``None`` if it has none."""
    if isinstance(dataset, Subset):
        return _find_class_names(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return _find_class_names(dataset.datasets[0])
    names = getattr(dataset, "classes", None)
    return list(names) if isinstance(names, Sequence) and all(isinstance(name, str) for name in names) else None


def _as_list(labels: Any) -> list[Any]:
    """Return labels as Python values, or arrays of 0 and 1."""
    numbers = isinstance(labels, np.ndarray | Tensor) and labels.ndim == 1
    return list(labels.tolist()) if numbers else [_as_python(label) for label in labels]


def _as_python(label: Any) -> Any:
    """Return a label as a Python value, or several as an array of 0 and 1 or a list of Python values."""
    if isinstance(label, list | tuple | set):
        return [_as_python(each) for each in label]
    if isinstance(label, np.generic | np.ndarray | Tensor):
        return label.item() if label.ndim == 0 else np.asarray(label)
    return label
