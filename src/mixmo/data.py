"""Data for training and evaluation: decoded on the device where it fits, streamed by workers where not.

A loader yields :class:`DistinctBatch`: the U = B / b distinct images of a step, without augmentation, as
uint8. :mod:`mixmo.batches` makes the B mixtures from it on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from mixmo.errors import InputError
from mixmo.pairing import check_repetition
from mixmo.seeding import generator_for, seed_for
from mixmo.settings import DataSettings
from mixmo.sources import Source, decode, open_source

RESIDENT_LIMIT = 4 * 2**30
"""Sets up to this many decoded bytes live on the device; larger ones are streamed."""


class DistinctBatch(NamedTuple):
    """The distinct images of one step.

    Attributes:
        images: (N, H, W, C) uint8: the whole set where it is resident, the batch where it is streamed.
            Partners for mixing in pixels are drawn from these.
        labels: (N,) class numbers.
        chosen: (U,) positions of the step's distinct images in ``images``.
    """

    images: Tensor
    labels: Tensor
    chosen: Tensor


class ResidentImages(Dataset[DistinctBatch]):
    """A set of images that lives decoded on a device.

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,) int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> DistinctBatch:
        """Return the batch of these indices; nothing is copied but the indices."""
        return DistinctBatch(self.images, self.labels, torch.tensor(indices).to(self.images.device, non_blocking=True))

    def to(self, device: torch.device) -> ResidentImages:
        """Return the same images on a device."""
        return ResidentImages(self.images.to(device), self.labels.to(device))


class StreamedImages(Dataset[DistinctBatch]):
    """A set of images decoded when they are needed, onto one canvas.

    Args:
        source: Where they are.
        size: (H, W) of the canvas.
        channels: 3 or 1.
    """

    def __init__(self, source: Source, size: tuple[int, int], channels: int) -> None:
        self.source, self.size, self.channels = source, size, channels

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitems__(self, indices: list[int]) -> DistinctBatch:
        """Decode the images of these indices."""
        images = np.stack([decode(self.source, index, self.size, self.channels) for index in indices])
        labels = torch.from_numpy(self.source.labels[indices])
        return DistinctBatch(torch.from_numpy(images), labels, torch.arange(len(indices)))

    def to(self, device: torch.device) -> StreamedImages:
        """Return itself: streamed batches travel one by one."""
        return self


ImageSet = ResidentImages | StreamedImages


@dataclass(frozen=True)
class ImageData:
    """The splits of a dataset.

    Attributes:
        train: Training images.
        validation: Images held out of the training set for selection; ``None`` where the share is 0.
        test: Test images, which never choose anything.
        classes: The K class names.
        size: (H, W) of the decoded images.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    classes: list[str]
    size: tuple[int, int]


class EpochOrder(Sampler[int]):
    """A random order of the training set for each epoch, a function of (seed, epoch) alone."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Any:
        return iter(torch.randperm(self.size, generator=generator_for(self.seed, self.epoch, "order")).tolist())


def load_images(settings: DataSettings, seed: int = 0) -> ImageData:
    """Open a dataset, check it, decode it if it is small, and split off the validation set.

    Args:
        settings: The recipe's ``data`` section.
        seed: The run's seed; chooses the validation images, the same for every run with this seed.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if it is damaged, its sizes differ, or train and test disagree about the classes.
    """
    sources = {
        split: open_source(settings.name, split, settings.root, settings.download) for split in ("train", "test")
    }
    classes = sources["train"].classes
    if classes != sources["test"].classes:
        differ = sorted(set(classes) ^ set(sources["test"].classes))
        raise InputError(
            f"the training and test sets of {settings.name!r} have different classes, {', '.join(differ[:3])} "
            f"among {len(differ)} that only one of them has."
        )
    size = _canvas(settings, sources["train"])
    rest, held_out = _divided(sources["train"], settings.validation, seed)
    train = _image_set(rest, settings, size)
    validation = None if held_out is None else _image_set(held_out, settings, size)
    test = _image_set(sources["test"], settings, size)
    distinct = check_repetition(settings.batch_size, settings.batch_repetition)
    if len(train) < distinct:
        raise InputError(
            f"{settings.name!r} has {len(train)} training images, fewer than the {distinct} distinct images of "
            f"a batch (batch_size {settings.batch_size} / batch_repetition {settings.batch_repetition})."
        )
    return ImageData(train, validation, test, classes, size)


def load_test_images(settings: DataSettings, other: str | None = None) -> tuple[ImageSet, list[str]]:
    """Return the test images of a dataset and the names of its classes.

    Args:
        settings: The recipe's ``data`` section.
        other: Another dataset, whose test images are brought to the size of the recipe's.

    Raises:
        MissingError: if a dataset is missing.
        InputError: if it is damaged or its sizes differ.
    """
    own = open_source(settings.name, "test", settings.root, settings.download)
    size = _canvas(settings, own)
    if other is None:
        return _image_set(own, settings, size), own.classes
    source = open_source(other, "test", settings.root, settings.download)
    return _image_set(source, settings, size, scaled=True), source.classes


def load_validation_images(settings: DataSettings, seed: int) -> tuple[ImageSet, list[str]]:
    """Return the images that a run held out of its training set, and the names of the classes; no others are decoded.

    Args:
        settings: The recipe's ``data`` section.
        seed: The run's seed.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if it is damaged, its sizes differ, or the recipe holds out none.
    """
    source = open_source(settings.name, "train", settings.root, settings.download)
    _, held_out = _divided(source, settings.validation, seed)
    if held_out is None:
        raise InputError("there is no validation set: data.validation is 0.")
    return _image_set(held_out, settings, _canvas(settings, source)), source.classes


def read_test_images(settings: DataSettings, chosen: Sequence[int]) -> list[np.ndarray]:
    """Return some test images (H, W, C) as they are decoded for the network, uint8.

    Args:
        settings: The recipe's ``data`` section.
        chosen: Their numbers.
    """
    source = open_source(settings.name, "test", settings.root, settings.download)
    size = None if settings.image_size is None else (settings.image_size, settings.image_size)
    return [decode(source, index, size, settings.channels) for index in chosen]


def train_loader(images: ImageSet, settings: DataSettings, seed: int, device: torch.device) -> DataLoader[Any]:
    """Return the loader of training steps: U distinct images each, the incomplete last batch left out.

    An epoch shows every image b times: floor(N / U) steps, b times those of a single network
    (781 / 1562 / 3125 for b = 1 / 2 / 4 on 50,000 images at batch 64).
    """
    distinct = check_repetition(settings.batch_size, settings.batch_repetition)
    order = EpochOrder(len(images), seed)
    return _loader(images, BatchSampler(order, distinct, drop_last=True), settings, device, seed)


def evaluation_loader(images: ImageSet, settings: DataSettings, device: torch.device) -> DataLoader[Any]:
    """Return a loader that shows every image once, in order, in batches of ``settings.evaluation_size``."""
    batches = BatchSampler(SequentialSampler(range(len(images))), settings.evaluation_size, drop_last=False)
    return _loader(images, batches, settings, device, seed=0)


def _loader(
    images: ImageSet, batches: BatchSampler, settings: DataSettings, device: torch.device, seed: int
) -> DataLoader[Any]:
    streamed = isinstance(images, StreamedImages)
    return DataLoader(
        images.to(device),
        batch_sampler=batches,
        collate_fn=_as_is,
        num_workers=settings.workers if streamed else 0,
        persistent_workers=streamed and settings.workers > 0,
        pin_memory=streamed and device.type == "cuda",
        generator=torch.Generator().manual_seed(seed_for(seed, 0, "read")),
    )


def _as_is(batch: Any) -> Any:
    return batch


def _canvas(settings: DataSettings, source: Source) -> tuple[int, int]:
    """Return (H, W) of the decoded images: as set, or as the first image has it."""
    if settings.image_size is not None:
        return settings.image_size, settings.image_size
    height, width, _ = decode(source, 0, None, settings.channels).shape
    return height, width


def _image_set(source: Source, settings: DataSettings, size: tuple[int, int], scaled: bool | None = None) -> ImageSet:
    """Return the set, decoded if it is to be resident; images are scaled to the size if one is set, or if asked for."""
    scaled = settings.image_size is not None if scaled is None else scaled
    count = len(source.labels)
    streamed = StreamedImages(source, size, settings.channels)
    resident = settings.resident
    if resident is None:
        resident = count * math.prod(size) * settings.channels <= RESIDENT_LIMIT
    if not resident:
        if not scaled:
            raise InputError("streamed images need one size: set --data.image_size.")
        return streamed
    images = np.empty((count, *size, settings.channels), dtype=np.uint8)
    canvas = size if scaled else None

    def fill(index: int) -> None:
        image = decode(source, index, canvas, settings.channels)
        if image.shape != images.shape[1:]:
            raise InputError(
                f"image {source.name(index)} is {image.shape[0]}×{image.shape[1]}, but the first one is "
                f"{size[0]}×{size[1]}; bring all to one size with --data.image_size."
            )
        images[index] = image

    with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter's lock
        for _ in pool.map(fill, range(count)):
            pass
    return ResidentImages(torch.from_numpy(images), torch.from_numpy(source.labels))


def _divided(source: Source, share: float, seed: int) -> tuple[Source, Source | None]:
    """Return the rest of a source and the share held out of it, drawn class by class; ``None`` where it is 0."""
    if not share:
        return source, None
    try:
        rest, held_out = train_test_split(
            np.arange(len(source.labels)),
            test_size=share,
            stratify=source.labels,
            random_state=seed_for(seed, 0, "split") % 2**32,
        )
    except ValueError as error:
        raise InputError(
            f"a validation share of {share} cannot be split off evenly over the classes ({error}); "
            "change --data.validation, or set it to 0."
        ) from error
    return source.subset(np.sort(rest)), source.subset(np.sort(held_out))
