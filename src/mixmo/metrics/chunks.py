"""Chunked computation, which bounds the memory of float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 2**20
"""Numbers that are processed at a time."""


def in_chunks(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield some rows of all tensors at a time, at most :data:`CHUNK` numbers of the first (or one row).

    Example:
        >>> [len(rows) for rows, _ in in_chunks(torch.zeros(5, CHUNK // 2), torch.zeros(5))]
        [2, 2, 1]
    """
    rows = max(1, CHUNK // max(1, logits[:1].numel()))
    return zip(*(each.split(rows) for each in (logits, *others)), strict=True)


def mean_logits(logits: Tensor) -> Tensor:
    """Return the members' mean logits (N, K), computed in float64, as float32 or their own type if wider.

    Example:
        >>> mean_logits(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float16))
        tensor([[0.5000, 0.0000]])
    """
    kept = torch.promote_types(logits.dtype, torch.float32)
    found = logits.new_empty(len(logits), logits.shape[2], dtype=kept)
    for part, own in in_chunks(logits, found):
        own.copy_(part.double().mean(1))
    return found
