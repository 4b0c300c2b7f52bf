"""Rectangles, after CutMix (Yun et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from mixmo.masks.parts import FeatureShape, Generator, Roles, assign, break_stick


def cut(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give the first member a rectangle and the others the rest (Cut-MixMo, section 3.2 of the paper).

    As in CutMix the sides are floor(size * sqrt(kappa_1)), the centre is uniform on the grid, and the edges,
    centre ± side // 2, are clipped to the map. The realised ratio is therefore smaller than kappa_1: 0.306 on average
    instead of 0.5, for kappa ~ Beta(2, 2) at 32×32; on small maps a rectangle can be empty. Outside it the other
    members are mixed linearly in proportion to their ratios.

    Masks (B, M, 1, h, w); 0 or 1 when M = 2.

    Example:
        >>> from mixmo.masks.parts import picture
        >>> print(picture(cut(torch.tensor([[0.4, 0.6]]), (16, 6, 12), torch.Generator().manual_seed(0))))
        111111111111
        000000111111
        000000111111
        111111111111
        111111111111
        111111111111
        >>> mask = cut(torch.full((1000, 2), 0.5), (16, 8, 8), torch.Generator().manual_seed(0))
        >>> mask[:, 0].mean((1, 2, 3)).max()   # sides floor(8 * sqrt(0.5)) = 5 lose a row and a column
        tensor(0.2500)
    """
    _, height, width = shape
    root = ratios[:, 0].sqrt()
    top, bottom = _clipped_span(root, height, generator)
    left, right = _clipped_span(root, width, generator)
    return _rectangle_masks(ratios, roles, _span_mask(top, bottom, height), _span_mask(left, right, width))


def cut_exact(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give the first member a rectangle of area kappa_1 up to rounding, wholly inside the map.

    The height is round(h * sqrt(kappa_1)), or more if the width would exceed the map, and the width
    round(area / height); the position is uniform among those that fit. The realised ratio is within 1 / (2w) of the
    requested one.

    Masks (B, M, 1, h, w); 0 or 1 when M = 2.

    Example:
        >>> from mixmo.masks.parts import picture
        >>> print(picture(cut_exact(torch.tensor([[0.4, 0.6]]), (16, 6, 12), torch.Generator().manual_seed(0))))
        111111111111
        111100000001
        111100000001
        111100000001
        111100000001
        111111111111
        >>> mask = cut_exact(torch.tensor([[0.25, 0.75]]), (16, 8, 8), torch.Generator().manual_seed(0))
        >>> mask[0, :, 0].mean((1, 2)).tolist()
        [0.25, 0.75]
    """
    _, height, width = shape
    area = ratios[:, 0] * (height * width)
    rows = (height * ratios[:, 0].sqrt()).round().maximum((area / width).ceil()).clamp(min=1)
    columns = (area / rows).round()
    top, left = _fitting_start(rows, height, generator), _fitting_start(columns, width, generator)
    return _rectangle_masks(ratios, roles, _span_mask(top, top + rows, height), _span_mask(left, left + columns, width))


def cut_partition(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give every member but the last a rectangle, minus those of the members before it: a partition of the map.

    For M = 2 this is :func:`cut`. For more, the second member gets a rectangle of :func:`cut` with ratio
    kappa_2 / (kappa_2 + … + kappa_M), minus the first one's, and so on. Expected area: as for ``cut``, smaller than
    kappa_i for every member but the last.

    Masks (B, M, 1, h, w) of 0 and 1.

    Example:
        >>> from mixmo.masks.parts import picture
        >>> print(picture(cut_partition(torch.full((1, 3), 1 / 3), (16, 6, 12), torch.Generator().manual_seed(0))))
        222222222222
        000000222222
        000000222222
        111122222222
        111122222222
        111122222222
        >>> masks = cut_partition(torch.full((1, 3), 1 / 3), (16, 8, 8), torch.Generator().manual_seed(0))
        >>> masks.unique().tolist(), bool((masks.sum(1) == 1).all())
        ([0.0, 1.0], True)
    """
    if ratios.shape[1] == 2:
        return cut(ratios, shape, generator, roles)
    _, height, width = shape

    def draw(share: Tensor) -> Tensor:
        root = share.sqrt()
        rows = _span_mask(*_clipped_span(root, height, generator), height)
        columns = _span_mask(*_clipped_span(root, width, generator), width)
        return (rows[:, :, None] * columns[:, None, :])[:, None]

    return assign(break_stick(ratios, shape, draw), roles)


def _clipped_span(root: Tensor, size: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return start and end (B,) of CutMix's side along an axis of ``size`` cells, before clipping."""
    half = (size * root).floor().div(2, rounding_mode="floor")
    centre = torch.randint(size, root.shape, generator=generator, device=root.device)
    return centre - half, centre + half


def _fitting_start(length: Tensor, size: int, generator: Generator) -> Tensor:
    """Return a start (B,), uniform among those for which ``length`` cells fit into ``size``."""
    uniform = torch.rand(length.shape, generator=generator, dtype=torch.float32, device=length.device)
    return (uniform * (size - length + 1)).floor().clamp(max=size - length)


def _span_mask(start: Tensor, end: Tensor, size: int) -> Tensor:
    """Return (B, size), 1 where start <= position < end, else 0."""
    position = torch.arange(size, device=start.device)
    return ((position >= start[:, None]) & (position < end[:, None])).float()


def _rectangle_masks(ratios: Tensor, roles: Roles, rows: Tensor, columns: Tensor) -> Tensor:
    """Return masks (B, M, 1, h, w): part 0 inside rows × columns, the others outside."""
    if ratios.shape[1] == 1:
        return ratios.new_ones(len(ratios), 1, 1, rows.shape[1], columns.shape[1])
    others = ratios[:, 1:]
    rest = others.sum(1, keepdim=True)
    share = torch.where(rest > 0, others / rest, 1 / others.shape[1])  # 0 / 0 if kappa_1 = 1
    inside = torch.cat([torch.ones_like(rest), torch.zeros_like(others)], 1)
    outside = torch.cat([torch.zeros_like(rest), share], 1)
    inside, outside = assign(inside, roles), assign(outside, roles)  # (B, M) values, not whole masks
    rectangle = (rows[:, :, None] * columns[:, None, :]).flatten(1)[:, None]
    # outside + rectangle * (inside - outside) is exact for 0 and 1, and takes a third of where()'s time.
    masks = torch.addcmul(outside[:, :, None], rectangle, (inside - outside)[:, :, None])
    return masks.view(*ratios.shape, 1, rows.shape[1], columns.shape[1])
