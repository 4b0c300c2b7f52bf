"""PatchUp's masks: unions of square blocks (Faramarzi et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from mixmo.masks.parts import FeatureShape, Generator, Roles, assign, break_stick

BLOCK = 7


def patchup_2d(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give the first member the union of random 7×7 blocks, the same in all channels, and the others the rest.

    A block starts at each position with probability gamma = 1 - (1 - kappa_1)^(1/49), also beyond the border, so that
    every cell is covered with probability kappa_1: expected area kappa_i. The rest is shared in the same way among the
    other members, which makes a partition for any M. On smaller maps blocks have the size of the shorter side.

    Masks (B, M, 1, h, w) of 0 and 1.

    Example:
        >>> from mixmo.masks.parts import picture
        >>> print(picture(patchup_2d(torch.tensor([[0.4, 0.6]]), (16, 6, 12), torch.Generator().manual_seed(0))))
        111100000000
        111100000000
        111100000000
        111100000000
        111100000000
        111100000011
        >>> masks = patchup_2d(torch.full((500, 2), 0.5), (16, 16, 16), torch.Generator().manual_seed(0))
        >>> round(masks[:, 0].mean().item(), 1)
        0.5
    """
    one = (1, *shape[1:])
    return assign(break_stick(ratios, one, lambda share: _draw_blocks(share, one, generator)), roles)


def patchup_hard(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give the first member random 7×7 blocks, drawn for each channel separately, and the others the rest.

    Otherwise as :func:`patchup_2d`. Expected area: kappa_i. The reference code uses the blocks of the first channel for
    all, but the mean over all channels as the ratio.

    Masks (B, M, F, h, w) of 0 and 1.

    Example:
        >>> patchup_hard(torch.full((1, 2), 0.5), (16, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([1, 2, 16, 8, 8])
    """
    return assign(break_stick(ratios, shape, lambda share: _draw_blocks(share, shape, generator)), roles)


def patchup_soft(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Mix the members inside random 7×7 blocks, drawn for each channel; elsewhere there is only the first member.

    Blocks cover sqrt(1 - kappa_1) of the map in expectation, and inside them the others together have
    sqrt(1 - kappa_1): expected area kappa_i. PatchUp tunes the two shares; its reference code has the defect described
    in :func:`patchup_hard`.

    Masks (B, M, F, h, w) in [0, 1].

    Example:
        >>> masks = patchup_soft(torch.tensor([[0.75, 0.25]]), (16, 8, 8), torch.Generator().manual_seed(0))
        >>> masks[:, 0].unique().tolist()
        [0.5, 1.0]
    """

    def draw(share: Tensor) -> Tensor:
        root = (1 - share).sqrt()
        return 1 - _draw_blocks(root, shape, generator) * root[:, None, None, None]

    return assign(break_stick(ratios, shape, draw), roles)


def _draw_blocks(share: Tensor, shape: FeatureShape, generator: Generator) -> Tensor:
    """Return (B, F, h, w), 1 inside blocks; each cell is covered with probability ``share`` (B,)."""
    channels, height, width = shape
    block = min(BLOCK, height, width)
    gamma = 1 - (1 - share) ** (1 / block**2)
    size = (len(share), height + block - 1, width + block - 1, channels)
    starts = (
        torch.rand(size, generator=generator, dtype=torch.float32, device=share.device) < gamma[:, None, None, None]
    )
    for axis in (1, 2):
        length = 1
        while length < block:  # doubling: the union with the same blocks moved by `step`
            step = min(length, block - length)
            count = starts.shape[axis] - step
            starts = starts.narrow(axis, 0, count) | starts.narrow(axis, step, count)
            length += step
    return starts.to(share.dtype).permute(0, 3, 1, 2)
