"""Ranks of a distributed training: shares of the batch, and collective operations.

Every draw is made for the global batch, by every rank; each computes its part of it. So a run on many devices is
the same run: batch size, batch repetition and learning rate mean the global batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch import distributed as dist

from mixmo.data.image_sets import DistinctBatch


def size() -> int:
    """Return R, the number of ranks; 1 without any."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this rank among R; 0 without any."""
    return dist.get_rank() if size() > 1 else 0


def part() -> tuple[int, int]:
    """Return the number of this rank, and of ranks."""
    return rank(), size()


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over the ranks; every rank has to call this."""
    return sum_over_ranks(tensor) / size() if size() > 1 else tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks; every rank has to call this."""
    if size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def share_buffers(buffers: Iterable[Tensor]) -> None:
    """Have every rank hold the mean of all ranks' buffers, such as batch norms' statistics."""
    if size() == 1:
        return
    for buffer in buffers:
        if buffer.is_floating_point():
            buffer.copy_(mean_over_ranks(buffer))


def gather(batch: DistinctBatch) -> DistinctBatch:
    """Return the global batch of streamed images, of which each rank has decoded an equal share (U / R, H, W, C)."""
    if size() == 1:
        return batch
    labels = torch.cat(_gather(batch.labels))
    images = torch.cat(_gather(batch.images))
    return DistinctBatch(images, labels, torch.arange(len(labels), device=labels.device))


def gather_rows(own: Tensor) -> Tensor:
    """Return the rows of all ranks, which may differ in number; every rank has to call this."""
    if size() == 1:
        return own
    counts = torch.cat(_gather(torch.tensor([len(own)], device=own.device))).tolist()
    padded = own.new_zeros(max(counts), *own.shape[1:])
    padded[: len(own)] = own
    return torch.cat([part[:count] for part, count in zip(_gather(padded), counts, strict=True)])


def _gather(own: Tensor) -> list[Tensor]:
    """Return every rank's tensor of this shape."""
    parts = [torch.empty_like(own) for _ in range(size())]
    dist.all_gather(parts, own.contiguous())
    return parts
