"""Data for training and evaluation: decoded on the device where it fits, streamed by workers where not.

A loader yields :class:`DistinctBatch`: the U = B / b distinct images of a step, without augmentation, as
uint8. :mod:`mixmo.data.batches` makes the B mixtures from it on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from mixmo.config.settings import DataSettings
from mixmo.data.datasets import open_source
from mixmo.data.decoding import quiet
from mixmo.data.orders import Batches, EpochOrder
from mixmo.data.reading import decode_all, first_size, readable
from mixmo.data.sources import Source, decode
from mixmo.errors import InputError, MissingError
from mixmo.pairing import check_repetition
from mixmo.seeding import Stream, seed_for

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
        with quiet():
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
        classes: The K class names.
        size: (H, W) of the decoded images.
        fingerprint: SHA-256 (hexadecimal) of what is trained and validated on: names, sizes, labels and classes.
        settings: The recipe's ``data`` section.
        test_source: The test set, listed and not decoded.
    """

    train: ImageSet
    validation: ImageSet | None
    classes: list[str]
    size: tuple[int, int]
    fingerprint: str
    settings: DataSettings
    test_source: Source

    @cached_property
    def test(self) -> ImageSet:
        """Test images, which never choose anything: decoded when they are first asked for."""
        return _image_set(self.test_source, self.settings, self.size)


def load_images(settings: DataSettings, seed: int = 0, check: bool = True) -> ImageData:
    """Open a dataset, check it, decode it if it is small, and split off the validation set.

    The test set is only listed, until it is asked for.

    Args:
        settings: The recipe's ``data`` section.
        seed: The run's seed; chooses the validation images, the same for every run with this seed.
        check: Decode streamed images once, in threads, so that those that cannot be read are known before training.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if it is damaged, its sizes differ, or the test set has classes that the training set lacks.
    """
    train, test = _open(settings, "train"), _open(settings, "test")
    test = test.with_classes(train.classes, f"the test set of {settings.name!r}")
    size = _canvas(settings, train)
    rest, held_out = _divided(train, settings.validation, seed)
    images = _image_set(rest, settings, size, check=check)
    distinct = check_repetition(settings.batch_size, settings.batch_repetition)
    if len(images) < distinct:
        raise InputError(
            f"{settings.name!r} has {len(images)} training images, fewer than the {distinct} distinct images of "
            f"a batch (batch_size {settings.batch_size} / batch_repetition {settings.batch_repetition})."
        )
    validation = None if held_out is None else _image_set(held_out, settings, size, check=check)
    return ImageData(images, validation, train.classes, size, train.fingerprint(times=False), settings, test)


def load_test_images(settings: DataSettings, other: str | None = None) -> tuple[ImageSet, list[str]]:
    """Return the test images of a dataset and the names of its classes.

    Args:
        settings: The recipe's ``data`` section.
        other: Another dataset, whose test images are brought to the size of the recipe's.

    Raises:
        MissingError: if a dataset is missing.
        InputError: if it is damaged or its sizes differ.
    """
    own = _test_source(settings)
    size = _canvas(settings, own)
    if other is None:
        return _image_set(own, settings, size), own.classes
    source = _test_source(settings, other)
    return _image_set(source, settings, size, scaled=True), source.classes


def fingerprint_of_test(settings: DataSettings, other: str | None = None) -> str:
    """Return a SHA-256 (hexadecimal) that tells whether the images of :func:`load_test_images` changed.

    Names, sizes, modification times, labels and classes count; nothing is decoded.

    Args:
        settings: The recipe's ``data`` section.
        other: Another dataset's name.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if it is damaged.
    """
    return _test_source(settings, other).fingerprint()


def fingerprint_of_validation(settings: DataSettings, seed: int) -> str:
    """Return likewise whether the images of :func:`load_validation_images` changed.

    Args:
        settings: The recipe's ``data`` section.
        seed: The run's seed.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if it is damaged, or the recipe holds out none.
    """
    return _validation_source(settings, seed)[0].fingerprint()


def load_validation_images(settings: DataSettings, seed: int) -> tuple[ImageSet, list[str]]:
    """Return the images that a run held out of its training set, and the names of the classes; no others are decoded.

    Args:
        settings: The recipe's ``data`` section.
        seed: The run's seed.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if it is damaged, its sizes differ, or the recipe holds out none.
    """
    held_out, everything = _validation_source(settings, seed)
    return _image_set(held_out, settings, _canvas(settings, everything)), held_out.classes


def read_test_images(settings: DataSettings, chosen: Sequence[int]) -> list[np.ndarray]:
    """Return some test images (H, W, C) as they are decoded for the network, uint8.

    Args:
        settings: The recipe's ``data`` section.
        chosen: Their numbers among the images of :func:`load_test_images`.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if it is damaged, or one of the images cannot be read.
    """
    source = _test_source(settings)
    size = None if settings.image_size is None else (settings.image_size, settings.image_size)
    if settings.on_error == "skip":  # the others' numbers depend on which can be read
        source = readable(source, size, settings.channels, "skip")
    with quiet():
        return [decode(source, index, size, settings.channels) for index in chosen]


def train_loader(
    images: ImageSet,
    settings: DataSettings,
    seed: int,
    device: torch.device,
    epoch: int = 0,
    stream: Stream = "order",
    batches: int | None = None,
) -> DataLoader[Any]:
    """Return the loader of training steps: U distinct images each, the incomplete last batch left out.

    An epoch shows every image b times: floor(N / U) steps, b times those of a single network
    (781 / 1562 / 3125 for b = 1 / 2 / 4 on 50,000 images at batch 64).

    Args:
        images: The training images.
        settings: The recipe's ``data`` section.
        seed: The run's seed.
        device: Where resident images live.
        epoch: The first epoch shown; workers read ahead before anyone could set it.
        stream: The stream of seeds that the order is drawn from.
        batches: How many batches to yield; ``None`` is the whole epoch, and workers stay for the next one.
    """
    distinct = check_repetition(settings.batch_size, settings.batch_repetition)
    order = EpochOrder(len(images), seed, epoch, stream)
    return _loader(images, Batches(order, distinct, batches), settings, device, seed, persistent=batches is None)


def evaluation_loader(images: ImageSet, settings: DataSettings, device: torch.device) -> DataLoader[Any]:
    """Return a loader that shows every image once, in order, in batches of ``settings.evaluation_size``."""
    batches = BatchSampler(SequentialSampler(range(len(images))), settings.evaluation_size, drop_last=False)
    return _loader(images, batches, settings, device, seed=0)


def _loader(
    images: ImageSet,
    batches: BatchSampler,
    settings: DataSettings,
    device: torch.device,
    seed: int,
    persistent: bool = True,
) -> DataLoader[Any]:
    streamed = isinstance(images, StreamedImages)
    return DataLoader(
        images.to(device),
        batch_sampler=batches,
        collate_fn=_as_is,
        num_workers=settings.workers if streamed else 0,
        persistent_workers=persistent and streamed and settings.workers > 0,
        pin_memory=streamed and device.type == "cuda",
        generator=torch.Generator().manual_seed(seed_for(seed, 0, "read")),
    )


def _as_is(batch: Any) -> Any:
    return batch


def _open(settings: DataSettings, split: str, other: str | None = None) -> Source:
    return open_source(other or settings.name, split, settings.root, settings.download)


def _test_source(settings: DataSettings, other: str | None = None) -> Source:
    """Return a test set; a recipe's own is numbered by the classes of its training set, where that is there."""
    source = _open(settings, "test", other)
    if other is not None:
        return source
    try:
        classes = _open(settings, "train").classes
    except MissingError:
        return source
    return source.with_classes(classes, f"the test set of {settings.name!r}")


def _validation_source(settings: DataSettings, seed: int) -> tuple[Source, Source]:
    """Return what is held out of the training set, and the whole of it."""
    source = _open(settings, "train")
    _, held_out = _divided(source, settings.validation, seed)
    if held_out is None:
        raise InputError("there is no validation set: data.validation is 0.")
    return held_out, source


def _canvas(settings: DataSettings, source: Source) -> tuple[int, int]:
    """Return (H, W) of the decoded images: as set, or as the first image has it."""
    if settings.image_size is not None:
        return settings.image_size, settings.image_size
    return first_size(source, settings.channels)


def _image_set(
    source: Source, settings: DataSettings, size: tuple[int, int], scaled: bool | None = None, check: bool = False
) -> ImageSet:
    """Return the set, decoded if it is to be resident; images are scaled to the size if one is set, or if asked for."""
    scaled = settings.image_size is not None if scaled is None else scaled
    resident = settings.resident
    if resident is None:
        resident = len(source) * math.prod(size) * settings.channels <= RESIDENT_LIMIT
    if resident:
        images, source = decode_all(source, size, scaled, settings.channels, settings.on_error)
        return ResidentImages(torch.from_numpy(images), torch.from_numpy(source.labels))
    if not scaled:
        raise InputError("streamed images need one size: set --data.image_size.")
    if check or settings.on_error == "skip":
        source = readable(source, size, settings.channels, settings.on_error)
    return StreamedImages(source, size, settings.channels)


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
