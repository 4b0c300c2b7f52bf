"""Image sets and their loaders: in memory on the device if they fit, else streamed by workers.

A loader yields :class:`DistinctBatch`: the U = B / b distinct images of a step, as uint8 without augmentation, or as
copies prepared by a user's Dataset. :mod:`mixmo.data.batches` augments them on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from mixmo.config.data_settings import DataSettings
from mixmo.data.decoding import image_pixels
from mixmo.data.given import DatasetImages, as_pixels, is_float
from mixmo.data.orders import Batches, EpochOrder
from mixmo.data.reading import decode_all, find_readable
from mixmo.data.sources import Source, decode
from mixmo.data.workers import PREFETCHED, begin_worker, check_batches_fit
from mixmo.errors import InputError
from mixmo.header import Preparation
from mixmo.pairing import count_distinct
from mixmo.seeding import Stream, seed_for

IN_MEMORY_LIMIT = 4 * 2**30
"""Sets of up to this many decoded bytes are stored on the device; larger ones are streamed."""


class DistinctBatch(NamedTuple):
    """The distinct images of one step.

    Attributes:
        images: (N, H, W, C) uint8: the whole set if it is in memory, the batch if it is streamed; or, if a Dataset
            prepares them, c copies of each image of the batch, adjacent, (U * c, C, h, w) floating point. Partners for
            mixing in pixels are drawn from these.
        labels: (N,) class numbers.
        chosen: (U,) indices of the step's distinct images in ``images``.
    """

    images: Tensor
    labels: Tensor
    chosen: Tensor


class InMemoryImages(Dataset[DistinctBatch]):
    """A set of decoded images (N, H, W, C) uint8 on a device."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> DistinctBatch:
        """Return the batch of these indices; only the indices are copied."""
        return DistinctBatch(self.images, self.labels, torch.tensor(indices).to(self.images.device, non_blocking=True))

    def to(self, device: torch.device) -> InMemoryImages:
        """Return the same images on a device."""
        return InMemoryImages(self.images.to(device), self.labels.to(device))


class StreamedImages(Dataset[DistinctBatch]):
    """A set of images decoded on demand, to one size (H, W)."""

    def __init__(self, source: Source, size: tuple[int, int], settings: DataSettings) -> None:
        self.source, self.size, self.labels = source, size, source.labels
        self.conversion = settings.channels, settings.interpolation, settings.window

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> DistinctBatch:
        """Decode the images of these indices."""
        images = np.stack([decode(self.source, index, self.size, *self.conversion) for index in indices])
        labels = torch.from_numpy(self.labels[indices])
        return DistinctBatch(torch.from_numpy(images), labels, torch.arange(len(indices)))

    def to(self, device: torch.device) -> StreamedImages:
        """Return itself; batches are moved one by one."""
        return self


class PreparedImages(Dataset[DistinctBatch]):
    """Images prepared by a user's Dataset, which is asked for each copy.

    Floating-point images are used unchanged; others are normalised (:func:`to_input`).
    """

    def __init__(self, source: Source, settings: DataSettings) -> None:
        assert isinstance(source.images, DatasetImages)
        self.source, self.images, self.labels = source, source.images, source.labels
        self.preparation = Preparation.of(settings)
        _, height, width = self._copy(0, 0).shape
        self.size = (int(height), int(width))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int] | list[tuple[int, list[int]]]) -> DistinctBatch:
        """Return a copy for each index, or for each seed of (index, seeds); copies of an image are adjacent."""
        pairs = [each if isinstance(each, tuple) else (each, [0]) for each in indices]
        copies = torch.stack([self._copy(index, seed) for index, seeds in pairs for seed in seeds])
        labels = torch.from_numpy(self.labels[[index for index, _ in pairs]])
        return DistinctBatch(copies, labels, torch.arange(len(pairs)))

    def to(self, device: torch.device) -> PreparedImages:
        """Return itself; batches are moved one by one."""
        return self

    def _copy(self, index: int, seed: int) -> Tensor:
        """Return an image as the network's input (C, h, w); ``seed`` seeds its transforms."""
        number = self.source.number(index)
        image = self.images.sample(number, seed).image
        copy = to_input(image, self.preparation, partial(self.images.name, number))
        expected = (self.preparation.channels, *getattr(self, "size", copy.shape[1:]))
        if copy.shape != expected:
            raise InputError(
                f"{self.images.name(number)} has shape {tuple(copy.shape)}, but the first one has {expected}; resize "
                "all to one size in the Dataset's transforms."
            )
        return copy


def to_input(image: Any, data: Preparation, name: Callable[[], str]) -> Tensor:
    """Return an image from a user's transforms as the network's input (C, h, w).

    Floating-point images must be finite and are not changed; others, and the content of a file, become (x / 255 - mean)
    / std. ``name`` is for errors.
    """
    if is_float(image):
        pixels = torch.as_tensor(image).float()
        if not bool(pixels.isfinite().all()):
            raise InputError(f"{name()} has values that are not finite.")
        return pixels
    image = image if isinstance(image, bytes | Image.Image) else as_pixels(image, name())
    planes = torch.from_numpy(image_pixels(image, data.channels, data.window, name)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return (planes - mean) / std


ImageSet = InMemoryImages | StreamedImages | PreparedImages


def build_image_set(
    source: Source, settings: DataSettings, size: tuple[int, int], scaled: bool = False, check: bool = False
) -> ImageSet:
    """Return the set, decoded unless streamed or prepared; images are scaled if a size is set or ``scaled`` is true.

    ``check`` decodes streamed images once to find those that cannot be read.
    """
    if isinstance(source.images, DatasetImages) and source.images.prepared:
        return PreparedImages(source, settings)
    scaled = scaled or settings.image_size is not None
    in_memory = settings.in_memory
    if in_memory is None:
        in_memory = len(source) * math.prod(size) * settings.channels <= IN_MEMORY_LIMIT
    if in_memory:
        images, source = decode_all(source, size, scaled, settings)
        return InMemoryImages(torch.from_numpy(images), torch.from_numpy(source.labels))
    if not scaled:
        raise InputError("streamed images need one size: set data.image_size.")
    if check or settings.on_error == "skip":
        source = find_readable(source, size, settings)
    return StreamedImages(source, size, settings)


def build_train_loader(
    images: ImageSet,
    settings: DataSettings,
    seed: int,
    device: torch.device,
    epoch: int = 0,
    stream: Stream = "order",
    batches: int | None = None,
    start: int = 0,
    part: tuple[int, int] = (0, 1),
    copies: int = 1,
) -> DataLoader[Any]:
    """Return the loader of training steps of U distinct images each, without an incomplete last batch.

    An epoch shows every image b times: it has floor(N / U) steps, b times those of a single network
    (781 / 1562 / 3125 for b = 1 / 2 / 4 on 50,000 images at batch 64), also with ``sampler: balanced``.

    Args:
        images: The training images; those in memory are moved to ``device``.
        settings: The recipe's ``data`` section.
        seed: The run's seed.
        device: The network's device.
        epoch: The first epoch to show; workers read ahead before it could be set later.
        stream: The stream of seeds that the order is drawn from.
        batches: How many batches to yield; ``None`` is the whole epoch, with workers that persist.
        start: How many batches of the first epoch to skip.
        part: (rank, number of ranks): which share of a streamed batch to decode.
        copies: How many copies of each image to request from a Dataset that prepares them.
    """
    distinct = count_distinct(settings.batch_size, settings.batch_repetition)
    labels = torch.as_tensor(images.labels).cpu() if settings.sampler == "balanced" else None
    order = EpochOrder(len(images), seed, epoch, stream, labels)
    shown = Batches(
        order, distinct, batches, start, (0, 1) if isinstance(images, InMemoryImages) else part,
        copies=copies if isinstance(images, PreparedImages) else 0,
    )  # fmt: skip
    return _make_loader(images, shown, settings, device, seed, persistent=batches is None)


def build_evaluation_loader(
    images: ImageSet, settings: DataSettings, device: torch.device, part: tuple[int, int] = (0, 1)
) -> DataLoader[Any]:
    """Return a loader of every image once, in order, in batches of ``settings.evaluation_size``.

    Rank r of n, ``part`` (r, n), gets images r, r + n, r + 2n, ….
    """
    number, parts = part
    batches = BatchSampler(range(number, len(images), parts), settings.evaluation_size, drop_last=False)
    return _make_loader(images, batches, settings, device, seed=0)


def check_shared_memory(
    images: ImageSet, settings: DataSettings, batch: int, processes: int = 1, copies: int = 1
) -> None:
    """Refuse settings with which workers would run out of shared memory.

    Args:
        images: The images to load.
        settings: The recipe's ``data`` section.
        batch: Images per batch.
        processes: Processes on this machine that have such workers.
        copies: Copies of each image requested from a Dataset that prepares them.
    """
    if not isinstance(images, InMemoryImages) and settings.workers:
        values = min(batch, len(images)) * math.prod(images.size) * settings.channels
        size = 4 * copies * values if isinstance(images, PreparedImages) else values
        check_batches_fit(size, math.ceil(len(images) / batch), settings.workers, processes)


def _make_loader(
    images: ImageSet,
    batches: BatchSampler,
    settings: DataSettings,
    device: torch.device,
    seed: int,
    persistent: bool = True,
) -> DataLoader[Any]:
    streamed = not isinstance(images, InMemoryImages)
    workers = settings.workers if streamed else 0
    return DataLoader(
        images.to(device),
        batch_sampler=batches,
        collate_fn=as_is,
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        persistent_workers=persistent and workers > 0,
        pin_memory=streamed and device.type == "cuda",
        generator=torch.Generator().manual_seed(seed_for(seed, 0, "read")),
        worker_init_fn=begin_worker,
    )


def as_is(batch: Any) -> Any:
    """Return a batch unchanged, as the ``collate_fn`` of loaders whose datasets return batches."""
    return batch
