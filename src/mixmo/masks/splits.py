"""Masks of rows, columns, channels or single pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from mixmo.errors import InputError
from mixmo.masks.parts import FeatureShape, Generator, Roles, assign, bands, break_stick


def horizontal(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give the members contiguous rows, from the top or, with probability 1/2, from the bottom.

    Expected area: kappa_i, rounded to rows.

    Masks (B, M, 1, h, w) of 0 and 1, a view of (B, M, 1, h, 1).

    Example:
        >>> horizontal(torch.tensor([[0.25, 0.75]]), (16, 4, 2), torch.Generator().manual_seed(0))[0, 0, 0].tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    """
    _, height, width = shape
    return _runs(ratios, height, generator, roles)[:, :, None, :, None].expand(-1, -1, 1, height, width)


def vertical(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give the members contiguous columns, from the left or, with probability 1/2, from the right.

    Expected area: kappa_i, rounded to columns.

    Masks (B, M, 1, h, w) of 0 and 1, a view of (B, M, 1, 1, w).

    Example:
        >>> vertical(torch.tensor([[0.25, 0.75]]), (16, 1, 4), torch.Generator().manual_seed(0))[0, 0, 0].tolist()
        [[0.0, 0.0, 0.0, 1.0]]
    """
    _, height, width = shape
    return _runs(ratios, width, generator, roles)[:, :, None, None, :].expand(-1, -1, 1, height, width)


def channel(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give the members contiguous channels, from the first or, with probability 1/2, from the last.

    Expected area: kappa_i, rounded to channels.

    Masks (B, M, F, h, w) of 0 and 1, a view of (B, M, F, 1, 1).

    Example:
        >>> masks = channel(torch.tensor([[0.25, 0.75]]), (4, 8, 8), torch.Generator().manual_seed(0))
        >>> masks[0, 0, :, 0, 0].tolist()
        [0.0, 0.0, 0.0, 1.0]
    """
    channels, height, width = shape
    return _runs(ratios, channels, generator, roles)[..., None, None].expand(-1, -1, -1, height, width)


def bernoulli(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give each channel to a member drawn with probabilities kappa_1, …, kappa_M.

    Expected area: kappa_i.

    Masks (B, M, F, h, w) of 0 and 1, a view of (B, M, F, 1, 1).

    Example:
        >>> masks = bernoulli(torch.tensor([[0.25, 0.75]]), (400, 8, 8), torch.Generator().manual_seed(0))
        >>> abs(masks[0, 0].mean().item() - 0.25) < 0.1
        True
    """
    channels, height, width = shape
    coordinate = torch.rand(len(ratios), channels, generator=generator, dtype=torch.float32, device=ratios.device)
    return assign(bands(coordinate, ratios), roles)[..., None, None].expand(-1, -1, -1, height, width)


def noise(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Mix the members with an independent ratio at each pixel.

    The first member's share is uniform on [0, 2 kappa_1], or on [2 kappa_1 - 1, 1] if kappa_1 > 1/2; the rest is shared
    in the same way among the others. Expected area: kappa_i. The reference code rescales a uniform draw to the median
    kappa, which moves the mean to 1/4 + kappa/2, and then crashes.

    Masks (B, M, 1, h, w) in [0, 1].

    Example:
        >>> masks = noise(torch.tensor([[0.25, 0.75]]), (16, 64, 64), torch.Generator().manual_seed(0))
        >>> round(masks[0, 0].mean().item(), 2), masks[0, 0].max() <= 0.5
        (0.25, tensor(True))
    """
    _, height, width = shape

    def draw(share: Tensor) -> Tensor:
        uniform = torch.rand(
            len(share), 1, height, width, generator=generator, dtype=torch.float32, device=share.device
        )
        share = share[:, None, None, None]
        return torch.where(share <= 0.5, 0.0, 2 * share - 1) + uniform * (2 * share.minimum(1 - share))

    return assign(break_stick(ratios, shape, draw), roles)


def _runs(ratios: Tensor, size: int, generator: Generator, roles: Roles) -> Tensor:
    """Return (B, M, size), contiguous runs along an axis, in either direction."""
    if ratios.shape[1] > size:
        raise InputError(
            f"masks along an axis of {size} cannot be shared among {ratios.shape[1]} members; use fewer members or "
            "another kind."
        )
    coordinate = (torch.arange(size, device=ratios.device) + 0.5) / size
    backward = torch.rand(len(ratios), 1, generator=generator, dtype=torch.float32, device=ratios.device) < 0.5
    return assign(bands(torch.where(backward, 1 - coordinate, coordinate), ratios), roles)
