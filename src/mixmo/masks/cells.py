"""Partitions into many cells, for any number of members."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mixmo.errors import InputError
from mixmo.masks.parts import FeatureShape, Generator, Roles, assign, bands

GRID = 4
FAR = 1e9
"""Excludes the sites of other members from a minimum; larger than any squared distance on a map."""


def grid(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give the members random cells of a 4×4 grid, in proportion to their ratios.

    Part i gets floor or ceil(C * kappa_i) of the C cells, by systematic sampling. Expected area: kappa_i. On maps
    with fewer than 4 rows or columns the grid has that many.

    Masks (B, M, 1, h, w) of 0 and 1.

    Example:
        >>> from mixmo.masks.parts import picture
        >>> print(picture(grid(torch.tensor([[0.4, 0.6]]), (16, 6, 12), torch.Generator().manual_seed(0))))
        111000000111
        111000000111
        111000111111
        111000111111
        111000111111
        000111000111
        >>> grid(torch.tensor([[0.25, 0.75]]), (16, 8, 8), torch.Generator().manual_seed(0)).mean((2, 3, 4)).tolist()
        [[0.25, 0.75]]
    """
    _, height, width = shape
    rows, columns = min(GRID, height), min(GRID, width)
    count, members = rows * columns, ratios.shape[1]
    if members > count:
        raise InputError(
            f"the mask 'grid' has {count} cells on a map of {height}×{width}, fewer than the {members} members; "
            "use fewer members or another kind."
        )
    cells = assign(bands(_sample_coordinates(len(ratios), count, ratios, generator), ratios), roles)
    row = torch.arange(height, device=ratios.device) * rows // height
    column = torch.arange(width, device=ratios.device) * columns // width
    cell_of = (row[:, None] * columns + column).flatten()
    inside = (torch.arange(count, device=ratios.device)[:, None] == cell_of).to(ratios.dtype)  # (count, h * w)
    return (cells @ inside).view(*ratios.shape, 1, height, width)  # faster than indexing


def voronoi(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give the members Voronoi cells: each position belongs to the nearest of 2M random sites.

    Sites are uniform on the map; part i has floor or ceil(2M * kappa_i) of them, by systematic sampling. Expected
    area: kappa_i.

    Masks (B, M, 1, h, w) of 0 and 1.

    Example:
        >>> from mixmo.masks.parts import picture
        >>> print(picture(voronoi(torch.full((1, 3), 1 / 3), (16, 6, 12), torch.Generator().manual_seed(0))))
        221100011111
        221110111110
        221111111000
        222222220000
        222222220000
        222222220000
        >>> masks = voronoi(torch.full((2000, 2), 0.5), (16, 8, 8), torch.Generator().manual_seed(0))
        >>> round(masks[:, 0].mean().item(), 1)
        0.5
    """
    (_, height, width), members, device = shape, ratios.shape[1], ratios.device
    coordinates = _sample_coordinates(len(ratios), 2 * members, ratios, generator, shuffled=False)
    owned = assign(bands(coordinates, ratios), roles)  # (B, M, 2M): which member each site belongs to
    y, x = torch.rand(2, *coordinates.shape, generator=generator, dtype=torch.float32, device=device).unbind()
    y, x = y * height, x * width
    # |p - s|² without |p|², which is the same for all sites, in one matrix product for each member.
    rows = (torch.arange(height, dtype=torch.float32, device=device) + 0.5)[:, None].expand(height, width).flatten()
    columns = (torch.arange(width, dtype=torch.float32, device=device) + 0.5).repeat(height)
    positions = torch.stack([-2 * rows, -2 * columns, torch.ones_like(rows)])
    distances = []
    for member in range(members):
        offset = y.square() + x.square() + (1 - owned[:, member]) * FAR
        distances.append((torch.stack([y, x, offset], 2) @ positions).amin(1))
    masks = ratios.new_ones(*ratios.shape, height * width)
    free = masks[:, -1]  # the last member gets the remainder; ties go to the first member
    for member in range(members - 1):
        rivals = functools.reduce(torch.minimum, distances[member + 1 :])
        free -= masks[:, member].copy_(distances[member] <= rivals).mul_(free)
    return masks.view(*ratios.shape, 1, height, width)


def _sample_coordinates(batch: int, count: int, ratios: Tensor, generator: Generator, shuffled: bool = True) -> Tensor:
    """Return (B, count) equidistant coordinates in [0, 1) with a random start: systematic sampling."""
    start = torch.rand(batch, 1, generator=generator, dtype=torch.float32, device=ratios.device)
    if shuffled:
        order = torch.rand(batch, count, generator=generator, dtype=torch.float32, device=ratios.device).argsort(1)
    else:
        order = torch.arange(count, device=ratios.device)
    return ((order + start) / count).clamp(max=1 - 1e-6)
