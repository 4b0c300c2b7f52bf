"""Digital corruptions; docstrings list the parameters of a severity in parentheses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from mixmo.corruptions.filters import box_matrix, gaussian, separable, uniform


def contrast(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Scale the distance of values from each channel's mean: (factor,)."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * severity[0] + mean


def saturate(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Change HSV's saturation to factor * saturation + shift; the hue of grey is red: (factor, shift)."""
    factor, shift = severity
    value, below = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    saturation = torch.where(value > 0, (value - below) / value, 0)
    target = (saturation * factor + shift).clamp(0, 1)
    red = torch.cat([value, value * (1 - target), value * (1 - target)], 1)
    return torch.where(saturation > 0, value - (value - images) * target / saturation, red)


def pixelate(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Downsample by a factor and upsample again, both with a box filter: (factor,)."""
    height, width = images.shape[-2:]
    low, narrow = (max(1, int(side * severity[0])) for side in (height, width))
    small = separable(images, box_matrix(height, low), box_matrix(width, narrow))
    return separable((small * 255).round() / 255, box_matrix(low, height), box_matrix(narrow, width))


def jpeg_compression(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Encode as JPEG and decode again: (quality, 1 to 100)."""
    pixels = (images * 255).round().byte().cpu()
    files = encode_jpeg(list(pixels), int(severity[0]))
    return torch.stack([decode_jpeg(file) for file in files]).to(images) / 255


def elastic_transform(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Apply a random affine map, then a smooth random displacement: (displacement, its σ, affine jitter).

    These are shares of the shorter side; the jitter is how far the three points that define the map may move.
    """
    count, _, height, width = images.shape
    amount, sigma, jitter = (share * min(height, width) for share in severity)
    images = _warp(images, _affine_positions(count, height, width, jitter, generator).to(images), mirror_pixels=True)
    if not amount:
        return images
    noise = uniform((count, 2, height, width), -1, 1, generator, images)
    displacement = gaussian(noise, sigma, "reflect", truncate=3) * amount
    return _warp(images, _grid(height, width, images) + displacement, mirror_pixels=False)


def _affine_positions(count: int, height: int, width: int, jitter: float, generator: torch.Generator) -> Tensor:
    """Return each pixel's source row and column (count, 2, H, W) under random affine maps, on the CPU."""
    middle, third = torch.tensor([height // 2, width // 2]), min(height, width) // 3
    points = middle + third * torch.tensor([[1, 1], [1, -1], [-1, -1]])  # (column, row), as published
    points = points.double().expand(count, 3, 2)
    targets = points + uniform((count, 3, 2), -jitter, jitter, generator)
    back = torch.linalg.solve(F.pad(targets, (0, 1), value=1.0), points)  # (count, 3, 2): [column, row, 1] -> source
    rows, columns = _grid(height, width, targets)
    positions = torch.stack([columns, rows, torch.ones_like(rows)], -1) @ back[:, None]
    return torch.movedim(positions.flip(-1), -1, 1)


def _grid(height: int, width: int, like: Tensor) -> Tensor:
    """Return the row and column (2, H, W) of each pixel."""
    lines = (torch.arange(side, device=like.device, dtype=like.dtype) for side in (height, width))
    return torch.stack(torch.meshgrid(*lines, indexing="ij"))


def _warp(images: Tensor, positions: Tensor, mirror_pixels: bool) -> Tensor:
    """Sample images at rows and columns (B, 2, H, W) by linear interpolation.

    Outside they are mirrored at the centres of the border's pixels (``mirror_pixels``) or at their outer edges.
    """
    sides = positions.new_tensor(images.shape[-2:]).view(2, 1, 1)
    scaled = 2 * positions / (sides - 1) - 1 if mirror_pixels else (2 * positions + 1) / sides - 1
    grid = scaled.flip(1).movedim(1, -1).to(images)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=mirror_pixels)
