"""The order of training images: shuffled or balanced by class, from any batch of an epoch on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Sampler

from mixmo.seeding import Stream, generator_for, seed_for

CHUNK = 2**16
"""Indices converted to Python integers at a time: a list of millions would take ten times the tensor's memory."""


class EpochOrder(Sampler[int]):
    """A random order of the training set for each epoch, a function of (seed, epoch) alone.

    With labels (N,), an epoch shows every class equally often, otherwise every image once.

    Example:
        >>> order = EpochOrder(6, seed=0)
        >>> sorted(order) == list(range(6)), list(order) == list(order)
        (True, True)
        >>> sorted(EpochOrder(6, seed=0, labels=torch.tensor([0, 0, 0, 0, 0, 1])))[3:]
        [5, 5, 5]
    """

    def __init__(
        self, size: int, seed: int, epoch: int = 0, stream: Stream = "order", labels: Tensor | None = None
    ) -> None:
        self.size, self.seed, self.epoch, self.stream = size, seed, epoch, stream
        self.classes = None if labels is None else _group_by_class(labels)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each, but before the first only after workers have started it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = generator_for(self.seed, self.epoch, self.stream)
        order = torch.randperm(self.size, generator=generator)
        if self.classes is not None:
            order = self._balance(self.classes, generator)[order]
        for chunk in order.split(CHUNK):
            yield from chunk.tolist()

    def _balance(self, classes: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """Return N indices, equally many of each class and of each image within a class, up to one."""
        extra = torch.randperm(len(classes), generator=generator) < self.size % len(classes)
        chosen = []
        for indices, more in zip(classes, extra.tolist(), strict=True):
            count = self.size // len(classes) + more
            shuffled = indices[torch.randperm(len(indices), generator=generator)]
            chosen.append(shuffled.repeat(-(-count // len(indices)))[:count])
        return torch.cat(chosen)


def _group_by_class(labels: Tensor) -> Sequence[Tensor]:
    """Return the indices of each class's images."""
    groups: Sequence[Tensor] = labels.argsort(stable=True).split(labels.unique(return_counts=True)[1].tolist())
    return groups


class Batches(BatchSampler):
    """Batches of indices, without an incomplete last one.

    At most ``limit`` batches are yielded, so that workers decode no more; the first ``start`` of the first epoch are
    skipped. ``part`` (i, n) selects the i-th of n equal parts of each batch. With ``copies``, each index comes with a
    seed for each copy of its image, a function of (seed, stream, epoch, index, copy), or of the position instead of the
    index if an epoch may repeat it. So a resumed run, or one with other workers, gets the same copies.

    Example:
        >>> [len(batch) for batch in Batches(EpochOrder(7, seed=0), 2, limit=2)]
        [2, 2]
        >>> batch = next(iter(Batches(EpochOrder(4, seed=0), 2, copies=3)))
        >>> [len(seeds) for _, seeds in batch], len({seed for _, seeds in batch for seed in seeds})
        ([3, 3], 6)
    """

    def __init__(
        self, order: EpochOrder, size: int, limit: int | None = None, start: int = 0,
        part: tuple[int, int] = (0, 1), copies: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(order, size, drop_last=True)
        self.order, self.limit, self.start, self.part = order, limit, (order.epoch, start), part
        self.copies = copies

    def __len__(self) -> int:
        return super().__len__() if self.limit is None else min(self.limit, super().__len__())

    def __iter__(self) -> Iterator[list[Any]]:
        epoch, start = self.start
        first = start if self.order.epoch == epoch else 0
        (number, parts), share = self.part, self.batch_size // self.part[1]
        for count, batch in enumerate(islice(super().__iter__(), first, len(self)), first):
            indices = batch[number * share : (number + 1) * share] if parts > 1 else batch
            yield self._add_seeds(indices, count * self.batch_size + number * share) if self.copies else indices

    def _add_seeds(self, batch: list[int], start: int) -> list[tuple[int, list[int]]]:
        """Return each index with the seeds of its copies; ``start`` is the batch's position in the epoch."""
        order, seed = self.order, seed_for(self.order.seed, 0, self.order.stream)
        positions = batch if order.classes is None else range(start, start + len(batch))
        steps = [(order.epoch * order.size + position) * self.copies for position in positions]
        return [
            (index, [seed_for(seed, step + copy, "copy") for copy in range(self.copies)])
            for index, step in zip(batch, steps, strict=True)
        ]
