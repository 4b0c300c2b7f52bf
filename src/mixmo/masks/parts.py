"""Building blocks of masks: types, and ways to share positions among members."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FeatureShape = tuple[int, int, int]
Generator = torch.Generator | None
"""The random generator; ``None`` is torch's global one."""
Roles = Tensor | None
"""(M,) or (B, M): member i gets part roles[i]; ``None`` is the identity."""
MaskFunction = Callable[[Tensor, FeatureShape, Generator, Roles], Tensor]


def picture(masks: Tensor) -> str:
    """Return the member with the largest mask at each position of the first sample, as text; M is at most 10.

    Example:
        >>> print(picture(torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, 0.8]]).view(1, 2, 1, 1, 3)))
        011
    """
    return "\n".join("".join(map(str, row)) for row in masks[0, :, 0].argmax(0).tolist())


def assign(parts: Tensor, roles: Roles) -> Tensor:
    """Give member i the part roles[i] of (B, M, …).

    Example:
        >>> assign(torch.tensor([[10, 20, 30]]), torch.tensor([2, 0, 1])).tolist()
        [[30, 10, 20]]
    """
    if roles is None:
        return parts
    if roles.dim() == 1:
        return parts[:, roles]
    return parts[torch.arange(len(parts), device=parts.device)[:, None], roles]


def bands(coordinate: Tensor, ratios: Tensor) -> Tensor:
    """Share positions by their coordinate (B, n) in [0, 1): part i gets those in [κ_1 + … + κ_{i-1}, κ_1 + … + κ_i).

    Returns masks (B, M, n) of 0 and 1.

    Example:
        >>> bands(torch.tensor([[0.1, 0.6, 0.7]]), torch.tensor([[0.5, 0.5]])).tolist()
        [[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]]
    """
    upper = ratios.cumsum(1)[:, :-1, None]
    below = (coordinate[:, None] < upper).to(ratios.dtype)  # (B, M - 1, n), non-decreasing along M
    return _differences(below, ratios, coordinate.shape[1])


def by_rank(field: Tensor, ratios: Tensor) -> Tensor:
    """Share positions by the rank of their values (B, n): part 1 gets the lowest κ_1 * n, rounded, and so on.

    Returns masks (B, M, n) of 0 and 1.

    Example:
        >>> by_rank(torch.tensor([[0.3, -1.0, 2.0, 0.5]]), torch.tensor([[0.25, 0.75]])).tolist()
        [[[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0]]]
    """
    count = field.shape[1]
    edges = (count * ratios.cumsum(1)[:, :-1]).round().long().clamp(0, count)
    ordered = F.pad(field.sort(1).values, (1, 0), value=-torch.inf)
    below = (field[:, None] <= ordered.gather(1, edges)[:, :, None]).to(ratios.dtype)
    return _differences(below, ratios, count)


def _differences(below: Tensor, ratios: Tensor, count: int) -> Tensor:
    """Return parts (B, M, n) from the cumulative indicators (B, M - 1, n) of the first 1, …, M - 1 parts."""
    masks = ratios.new_ones(*ratios.shape, count)
    masks[:, :-1] = below
    masks[:, 1:] -= below
    return masks


def break_stick(ratios: Tensor, shape: FeatureShape, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """Split off part 1 from the map, part 2 from the remainder, and so on.

    ``draw`` maps shares (B,) to random masks (B, 1 or F, h, w) in [0, 1]; if their expected mean is the share, that of
    part i is κ_i. Returns masks (B, M, 1 or F, h, w).

    Example:
        >>> half = lambda share: share[:, None, None, None].expand(-1, 1, 1, 1)
        >>> break_stick(torch.tensor([[0.5, 0.25, 0.25]]), (1, 1, 1), half).flatten().tolist()
        [0.5, 0.25, 0.25]
    """
    members = ratios.shape[1]
    masks = ratios.new_ones(1)  # allocated after the first draw, which has the number of channels
    for index in range(members - 1):
        tail = ratios[:, index:].sum(1)
        share = torch.where(tail > 0, ratios[:, index] / tail, 1 / (members - index))  # no 0 / 0
        part = draw(share.clamp(0, 1))
        if index == 0:
            channels, height, width = part.shape[1:]  # channels last in memory, as in the features
            masks = part.new_empty(len(part), members, height, width, channels).permute(0, 1, 4, 2, 3)
            masks[:, 0] = part
            torch.sub(1, part, out=masks[:, 1])
        else:  # masks[:, index] holds the remainder
            torch.mul(masks[:, index], 1 - part, out=masks[:, index + 1])
            masks[:, index] *= part
    return masks if members > 1 else ratios.new_ones(len(ratios), 1, 1, *shape[1:])
