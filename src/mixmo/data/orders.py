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

    Example:
        >>> [len(batch) for batch in Batches(EpochOrder(7, seed=0), 2, limit=2)]
        [2, 2]
    """

    def __init__(self, order: Sampler[int], size: int, limit: int | None) -> None:
        super().__init__(order, size, drop_last=True)
        self.limit = limit

    def __len__(self) -> int:
        return super().__len__() if self.limit is None else min(self.limit, super().__len__())

    def __iter__(self) -> Iterator[list[int]]:
        return islice(super().__iter__(), len(self))
