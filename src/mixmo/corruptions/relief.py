"""Relief of water drops for ``spatter``, with OpenCV's edge detection and equalisation for whole batches."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixmo.corruptions.filters import convolve

SOBEL = np.array([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
LIGHT = np.array([[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
BOX = np.full((3, 3), 1 / 9)
MAX_DISTANCE = 20


def water_relief(drops: Tensor) -> Tensor:
    """Return the height of the water: distance from the drops' edges, equalised and lit from a corner.

    Drops (B, 1, H, W) are grey levels 0 … 255 on a background of 0.
    """
    distance = convolve(edge_distance(canny_edges(drops, 50, 150)), BOX).floor()
    lit = convolve(equalise(distance), LIGHT).clamp(0, 255)
    return convolve(lit, BOX).round()


def canny_edges(images: Tensor, low: float, high: float) -> Tensor:
    """Return Canny's edges (B, 1, H, W) of grey levels: ridges of |∂x| + |∂y| above ``low`` that reach ``high``."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across, down = (convolve(padded, kernel)[..., 1:-1, 1:-1] for kernel in (SOBEL, SOBEL.T))
    magnitude = F.pad(across.abs() + down.abs(), (1, 1, 1, 1))

    def shift(rows: int, columns: int) -> Tensor:
        height, width = images.shape[-2:]
        return magnitude[..., 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    center, tangent = shift(0, 0), math.tan(math.pi / 8)
    flat = down.abs() < across.abs() * tangent
    steep = down.abs() > across.abs() * (2 + tangent)
    falling = (across < 0) == (down < 0)
    diagonal = torch.where(
        falling,
        (center > shift(-1, -1)) & (center > shift(1, 1)),
        (center > shift(-1, 1)) & (center > shift(1, -1)),
    )
    horizontal = (center > shift(0, -1)) & (center >= shift(0, 1))
    vertical = (center > shift(-1, 0)) & (center >= shift(1, 0))
    ridge = (center > low) & torch.where(flat, horizontal, torch.where(steep, vertical, diagonal))
    edges, growing = ridge & (center > high), True
    while growing:  # from strong pixels along weak ones
        grown = ridge & (F.max_pool2d(edges.float(), 3, 1, 1) > 0)
        growing, edges = bool((grown != edges).any()), grown
    return edges


def edge_distance(edge: Tensor) -> Tensor:
    """Return the Euclidean distance to the nearest edge pixel, at most 20.

    It is exact, unlike OpenCV's 5×5 mask, which is within 2 % of it.
    """
    squared = torch.where(edge, 0.0, float(MAX_DISTANCE**2))
    for axis in (2, 3):
        side = squared.shape[axis]
        nearest = squared.clone()
        for step in range(1, min(MAX_DISTANCE, side)):
            for target, source in ((0, step), (step, 0)):
                part = nearest.narrow(axis, target, side - step)
                part.copy_(torch.minimum(part, squared.narrow(axis, source, side - step) + step**2))
        squared = nearest
    return squared.sqrt().clamp(max=MAX_DISTANCE)


def equalise(images: Tensor) -> Tensor:
    """Equalise the histograms of grey levels (B, 1, H, W) as OpenCV does.

    A level becomes 255 * (n(≤ level) - n₀) / (N - n₀), with n₀ pixels at the darkest level; constant images stay.
    """
    levels = images.flatten(1).long()
    counts = torch.zeros(len(images), 256, device=images.device).scatter_add_(
        1, levels, torch.ones_like(levels).float()
    )
    total = levels.shape[1]
    darkest = counts.gather(1, levels.amin(1, keepdim=True))
    spread = (255 * (counts.cumsum(1) - darkest) / (total - darkest).clamp(min=1)).round()
    return torch.where((darkest == total)[..., None, None], images, spread.gather(1, levels).view_as(images))
