"""Images passed from Python: Datasets, arrays, tensors, Hugging Face datasets. Their labels: ``given_labels``."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from mixmo.config.data_settings import DataSettings
from mixmo.data.decoding import COLOURS
from mixmo.data.given_labels import as_list, as_python, find_class_names, find_groups, match_numbers, read_labels
from mixmo.data.hugging_face import IMAGES, LABELS, open_table
from mixmo.data.labels import check_names, number_labels
from mixmo.data.messages import list_some, warn_once
from mixmo.data.sources import ArrayImages, Source, hash_parts, number_groups, spread_indices
from mixmo.errors import InputError, explain_errors
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

    ``prepared`` images are passed to the network as the Dataset returns them, and requested once for each copy. They
    are ``is_random`` if its transforms are, and ``repeatable`` if an image is the same whenever it is read with the
    same seed.
    """

    dataset: Any
    title: str
    prepared: bool = False
    is_random: bool = False
    repeatable: bool = True
    _fingerprint: str | None = field(default=None, init=False, repr=False, compare=False)

    one_by_one = True
    """Read in one thread: a user's Dataset may not be thread-safe."""

    def read(self, index: int) -> Image.Image | np.ndarray | bytes:
        """Return an image, an array of its pixels, or the content of its file; refuse one that is random."""
        image, is_random = self.read_watched(index)
        if is_random and not self.prepared:
            raise InputError(
                f"{self.name(index)} draws random numbers, unlike the first images, which are read once; set "
                "own_transforms=True, to read all of them anew for each copy."
            )
        return image if isinstance(image, bytes | Image.Image) else as_pixels(image, self.name(index))

    def read_watched(self, index: int) -> tuple[Any, bool]:
        """Return what the Dataset has as an image, and whether reading it draws from a global generator."""
        with seed_globals(0):
            before = _global_states()
            image = self._split_item(self.dataset[index], index).image
            return image, before != _global_states()

    def sample(self, index: int, seed: int = 0) -> Sample:
        """Return a sample; ``seed`` seeds the global generators that its transforms draw from.

        Errors of the Dataset become an ``InputError``, unlike in :meth:`read`, whose callers report them.
        """
        with seed_globals(seed), explain_errors(f"{self.name(index)} cannot be read from its Dataset"):
            item = self.dataset[index]
        return self._split_item(item, index)

    def _split_item(self, item: Any, index: int) -> Sample:
        """Return the image and the label of what the Dataset returns."""
        what = f"a {type(item).__name__}"
        if isinstance(item, Mapping):
            names = ("pixel_values", *IMAGES), LABELS[:-1]  # transformed images come first; the last label is of shards
            keys = [[key for key in usual if key in item] for usual in names]
            if all(keys):
                item = [item[first] for first, *_ in keys]
            else:
                what = f"a mapping with the keys {', '.join(map(str, item))}"
        if isinstance(item, tuple | list):
            if len(item) == 2:
                image, label = item
                if isinstance(image, Tensor):
                    image = image.detach().cpu()
                    image = image.float() if image.dtype == torch.bfloat16 else image  # which NumPy lacks
                return Sample(image, label)
            what += f" of length {len(item)}"
        raise InputError(f"{self.name(index)} of the Dataset is {what}; it has to be a pair (image, label).")

    def name(self, index: int) -> str:
        """Return its title and number."""
        return f"{self.title} {index}"

    def fingerprint(self, times: bool) -> str:
        """Return a hash of all images with ``times``, so that results are reused for the same images only.

        It is kept until :meth:`forget_fingerprint`. Without ``times``, it is of up to eight images, none if they are
        not repeatable.
        """
        count = len(self.dataset)
        if not times:
            return hash_parts([str(count), *map(self._content, spread_indices(count) if self.repeatable else [])])
        if self._fingerprint is None:
            self._fingerprint = hash_parts([str(count), *map(self._content, range(count))])
        return self._fingerprint

    def forget_fingerprint(self) -> None:
        """Hash all images anew when the next fingerprint is asked for: the Dataset may have been changed."""
        self._fingerprint = None

    def _content(self, index: int) -> bytes:
        """Return an image as bytes, none if it cannot be read."""
        try:
            return _raw_bytes(self.sample(index).image)
        except InputError:
            return b""


def open_given(
    given: Any, split: str, classes: Sequence[str] | None = None, on_error: Literal["raise", "skip"] = "raise"
) -> Source:
    """Return a split's images, passed from Python, as a source; all labels are read, but only a few images.

    ``given`` is a map-style Dataset of (image, label) with PIL, array or tensor images; a pair of arrays or tensors, N
    images of integers (H, W), (H, W, C) or (C, H, W) and N labels; a dataset of the Hugging Face library; or a
    DataLoader of one of these. A label is a class number or name; several labels are an array or tensor (K,) of 0 and
    1, or a list of class numbers or names. ``classes`` are the class names of a Dataset or arrays without names, and
    ``on_error`` what to do with rows of a table that have no label (``raise`` or ``skip``).

    Example:
        >>> source = open_given((np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1]), "train")
        >>> source.classes, source.read(2).shape
        (['0', '1'], (8, 8))
    """
    if isinstance(given, str):
        argument = "val" if split == "validation" else split
        raise InputError(
            f"{argument} is {given!r}; pass images: only train takes a dataset's name, which has its own val and test."
        )
    if isinstance(given, DataLoader):
        warn_once(f"{split} is a DataLoader; only its dataset is used: mixmo draws its own batches.")
        given = dataset_of(given, split)
    if isinstance(given, Mapping):
        raise InputError(
            f"{split} is a {type(given).__name__} of {list_some([*map(str, given)])}; give one of its parts, or a pair "
            "(images, labels)."
        )
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], list):
        with explain_errors(f"{split} images cannot be stacked to one array", ValueError):
            given = np.stack([*map(np.asarray, given[0])]), given[1]
    if isinstance(given, tuple | list) and len(given) == 2 and not isinstance(given[0], tuple | list):
        source = _open_arrays(given[0], given[1], split, classes)
        check_names(source.classes, split)
        return source
    if isinstance(given, IterableDataset) or not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        raise InputError(
            f"{split} is a {type(given).__name__}; give a map-style Dataset, with __getitem__ and __len__, a pair of "
            "arrays (images, labels), or the name of a dataset."
        )
    if not len(given):
        raise InputError(f"{split} is empty: its Dataset has no images.")
    if _is_image_table(given):
        are_numbers = classes is not None and all(map(str.isdecimal, classes))  # match by name, not by position
        return open_table(given, split, DataSettings(on_error=on_error), None if are_numbers else classes)
    images = DatasetImages(given, f"{split} image")
    samples = {index: images.sample(index) for index in spread_indices(len(given))}
    for index, sample in samples.items():
        _check_image(sample.image, images.name(index))
    again = {i: (_raw_bytes(image), draws) for i in samples for image, draws in [images.read_watched(i)]}
    images.repeatable = all(content == _raw_bytes(samples[i].image) for i, (content, _) in again.items())
    if not images.repeatable:
        warn_once(
            f"{split} images differ whenever they are read, since their Dataset draws from a generator of its own; a "
            "run cannot be repeated or resumed exactly, unless it draws from a global one of torch, NumPy or Python."
        )
    draws = any(each for _, each in again.values()) or not images.repeatable
    images.is_random = draws or _depends_on_seed(images, samples)
    images.prepared = is_float(samples[0].image) or images.is_random
    for index, sample in samples.items() if images.prepared else ():
        if np.shape(sample.image) != np.shape(samples[0].image):
            raise InputError(
                f"{images.name(index)} has shape {np.shape(sample.image)}, but the first one "
                f"{np.shape(samples[0].image)}; resize all to one size in the Dataset's transforms."
            )
    values = read_labels(given, {index: sample.label for index, sample in samples.items()}, images.sample)
    if (own := find_class_names(given, split)) is None:
        values = match_numbers(values, classes)
    labels, names = number_labels(values, own or classes, split)
    check_names(names, split)
    return Source(labels, names, images, groups=find_groups(given, split))


def dataset_of(loader: Any, split: str) -> Any:
    """Return the dataset of a DataLoader, without images that its sampler leaves out; return anything else as it is.

    Example:
        >>> images = TensorDataset(torch.zeros(4, 1, 8, 8), torch.arange(4))
        >>> len(dataset_of(DataLoader(images, sampler=SubsetRandomSampler([0, 2])), "train"))
        2
    """
    if isinstance(loader, Dataset):
        return loader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return getattr(loader, "dataset", loader)
    sampler: Any = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(loader.dataset, list(sampler.indices))
    custom = not isinstance(sampler, SequentialSampler | RandomSampler | DistributedSampler)
    dataset: Any = loader.dataset
    custom = custom or len(getattr(sampler, "data_source", dataset)) != len(dataset)
    if custom or type(loader.batch_sampler) not in (BatchSampler, type(None)):
        sampler = type(sampler if custom else loader.batch_sampler).__name__
        raise InputError(
            f"{split} is a DataLoader with a {sampler}, but mixmo draws its own batches; pass its Dataset, or a Subset "
            'of it, and sampler="balanced" to show rare classes as often as others.'
        )
    return loader.dataset


def _open_arrays(images: Any, labels: Any, split: str, classes: Sequence[str] | None) -> Source:
    if len(images) != len(labels) or not len(images):
        raise InputError(f"there are {len(images)} {split} images and {len(labels)} labels; give one for each image.")
    numbers, names = number_labels(match_numbers(as_list(labels), classes), classes, split)
    if is_float(images) and len(images.shape) == 4:
        finite = torch.as_tensor(images).flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            raise InputError(f"{split} image {int(finite.int().argmin())} has values that are not finite.")
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
    values = groups.tolist() if isinstance(groups, np.ndarray | Tensor) else [as_python(each) for each in groups]
    if source.numbers is not None and len(values) == len(getattr(source.images, "dataset", ())):
        values = [values[number] for number in source.numbers]  # without those of rows that have no label
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
    if pixels.ndim == 3:
        first, _, last = (length in COLOURS for length in pixels.shape)
        if (first and not last) or (isinstance(image, Tensor) and (first or not last)):
            pixels = pixels.transpose(1, 2, 0)
    return np.ascontiguousarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def has_float_images(source: Source) -> bool:
    """Return whether a source's images are floating point, so that they are passed to the network unchanged."""
    return isinstance(source.images, DatasetImages) and is_float(source.images.sample(0).image)


def infer_channels(source: Source) -> int:
    """Return C of a source's images: 3 for RGBA; for arrays of other bands, the axis that differs in length.

    Up to eight images are read; if one is in colour, all are.
    """
    images = source.images
    if isinstance(images, DatasetImages) and is_float(sample := images.sample(0).image):
        return int(sample.shape[0])
    return max(_count_bands(source.read(index), source.name(index)) for index in spread_indices(len(source)))


def _count_bands(image: Image.Image | np.ndarray | bytes, name: str) -> int:
    if isinstance(image, np.ndarray):
        first, second, last = (*image.shape, 1)[:3]
        if last not in COLOURS and first != second != last:
            raise InputError(
                f"{name} has shape {image.shape}; set channels (data.channels) to tell which axis has the bands."
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


def _depends_on_seed(images: DatasetImages, samples: Mapping[int, Sample]) -> bool:
    """Return whether a Dataset gives other images under another seed, although it draws nothing from the generators."""
    return any(_raw_bytes(images.sample(index, 1).image) != _raw_bytes(each.image) for index, each in samples.items())


def _global_states() -> tuple[Any, ...]:
    """Return the states of the global generators, which can be compared."""
    _, keys, position, *_ = np.random.get_state()  # noqa: NPY002  (the generator that transforms draw from)
    return torch.get_rng_state().numpy().tobytes(), np.asarray(keys).tobytes(), position, random.getstate()


def _raw_bytes(image: Any) -> bytes:
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
