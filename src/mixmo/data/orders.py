"""The order in which training images are shown."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch.utils.data import BatchSampler, Sampler

from mixmo.seeding import Stream, generator_for


class EpochOrder(Sampler[int]):
    """A random order of the training set for each epoch, a function of (seed, epoch) alone.

    Args:
        size: N.
        seed: The run's seed.
        epoch: The first epoch.
        stream: The stream of seeds.
    """

    def __init__(self, size: int, seed: int, epoch: int = 0, stream: Stream = "order") -> None:
        self.size, self.seed, self.epoch, self.stream = size, seed, epoch, stream

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each, but for the first one after workers have begun it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.size, generator=generator_for(self.seed, self.epoch, self.stream)).tolist())


class Batches(BatchSampler):
    """Batches of indices, as many as asked for, so that workers decode no more.

    Args:
        order: The indices.
        size: Indices in a batch; an incomplete last one is left out.
        limit: Number of batches; ``None`` is all.
        start: Batches of the order's first epoch that were shown before, and are left out.
        part: Which equal part of each batch to show, and of how many.

    Example:
        >>> [len(batch) for batch in Batches(EpochOrder(7, seed=0), 2, limit=2)]
        [2, 2]
    """

    def __init__(
        self,
        order: EpochOrder,
        size: int,
        limit: int | None = None,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(order, size, drop_last=True)
        self.order, self.limit, self.start, self.part = order, limit, (order.epoch, start), part

    def __len__(self) -> int:
        return super().__len__() if self.limit is None else min(self.limit, super().__len__())

    def __iter__(self) -> Iterator[list[int]]:
        epoch, start = self.start
        (number, parts), share = self.part, self.batch_size // self.part[1]
        for batch in islice(super().__iter__(), start if self.order.epoch == epoch else 0, len(self)):
            yield batch[number * share : (number + 1) * share] if parts > 1 else batch
