"""Computation in chunks, to bound the memory that float64 needs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 2**20
"""Numbers per chunk."""


def in_chunks(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the rows of all tensors in chunks of at most :data:`CHUNK` numbers of the first tensor (or one row).

    Example:
        >>> [len(rows) for rows, _ in in_chunks(torch.zeros(5, CHUNK // 2), torch.zeros(5))]
        [2, 2, 1]
    """
    rows = max(1, CHUNK // max(1, logits[:1].numel()))
    return zip(*(tensor.split(rows) for tensor in (logits, *others)), strict=True)


def mean_logits(logits: Tensor) -> Tensor:
    """Return the members' mean logits (N, K), computed in float64, as float32 or the logits' type if wider.

    Example:
        >>> mean_logits(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float16))
        tensor([[0.5000, 0.0000]])
    """
    means = logits.new_empty(len(logits), logits.shape[2], dtype=torch.promote_types(logits.dtype, torch.float32))
    for part, mean in in_chunks(logits, means):
        mean.copy_(part.double().mean(1))
    return means
