"""The order in which training images are shown."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch.utils.data import BatchSampler, Sampler

from mixmo.seeding import Stream, generator_for, seed_for

CHUNK = 2**16
"""Numbers that become Python's at once: a list of millions would take ten times their memory."""


class EpochOrder(Sampler[int]):
    """A random order of the training set for each epoch, a function of (seed, epoch) alone.

    Args:
        size: N.
        seed: The run's seed.
        epoch: The first epoch.
        stream: The stream of seeds.

    Example:
        >>> order = EpochOrder(6, seed=0)
        >>> sorted(order) == list(range(6)), list(order) == list(order)
        (True, True)
    """

    def __init__(self, size: int, seed: int, epoch: int = 0, stream: Stream = "order") -> None:
        self.size, self.seed, self.epoch, self.stream = size, seed, epoch, stream

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each, but for the first one after workers have begun it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = generator_for(self.seed, self.epoch, self.stream)
        for chunk in torch.randperm(self.size, generator=generator).split(CHUNK):
            yield from chunk.tolist()


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


class CopyBatches(BatchSampler):
    """Batches in which every index stands as often as copies of its image are wanted, each with a seed of its own.

    The seed is a function of (seed, stream, epoch, index, copy): a run that is resumed, or has other workers, is shown
    the same copies.

    Args:
        batches: Batches of distinct indices.
        copies: c, copies of each.

    Example:
        >>> batch = next(iter(CopyBatches(Batches(EpochOrder(4, seed=0), 2), copies=3)))
        >>> len(batch), len({index for index, _ in batch}), len({seed for _, seed in batch})
        (6, 2, 6)
    """

    def __init__(self, batches: Batches, copies: int) -> None:
        super().__init__(batches.order, batches.batch_size, drop_last=True)
        self.batches, self.copies = batches, copies

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:  # type: ignore[override]
        order, copies = self.batches.order, range(self.copies)
        own = seed_for(order.seed, 0, order.stream)
        for batch in self.batches:
            first = {index: (order.epoch * order.size + index) * self.copies for index in batch}
            yield [(index, seed_for(own, first[index] + copy, "copy")) for index in batch for copy in copies]
