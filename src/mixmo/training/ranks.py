"""Ranks of distributed training, and collective operations, which every rank must call.

Every rank makes all draws of the global batch and computes its part of it: batch size, batch repetition and learning
rate refer to the global batch, and results do not depend on the number of devices.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch import distributed as dist

from mixmo.data.image_sets import DistinctBatch


def size() -> int:
    """Return R, the number of ranks; 1 if training is not distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, 0 to R - 1."""
    return dist.get_rank() if size() > 1 else 0


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and R."""
    return rank(), size()


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over the ranks."""
    return sum_over_ranks(tensor) / size() if size() > 1 else tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks."""
    if size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def average_buffers(buffers: Iterable[Tensor]) -> None:
    """Replace floating-point buffers, such as batch-norm statistics, by their mean over the ranks."""
    for buffer in buffers if size() > 1 else ():
        if buffer.is_floating_point():
            buffer.copy_(mean_over_ranks(buffer))


def gather_batch(batch: DistinctBatch) -> DistinctBatch:
    """Return the global batch (U, H, W, C) of streamed images, from each rank's equal share (U / R, H, W, C)."""
    if size() == 1:
        return batch
    images, labels = (torch.cat(_gather(tensor)) for tensor in (batch.images, batch.labels))
    return DistinctBatch(images, labels, torch.arange(len(labels), device=labels.device))


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, which may differ in number."""
    if size() == 1:
        return rows
    counts = torch.cat(_gather(torch.tensor([len(rows)], device=rows.device))).tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:count] for part, count in zip(_gather(padded), counts, strict=True)])


def _gather(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all ranks, which have one shape."""
    parts = [torch.empty_like(tensor) for _ in range(size())]
    dist.all_gather(parts, tensor.contiguous())
    return parts
