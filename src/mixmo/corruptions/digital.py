"""Digital corruptions.

Each takes images (B, 3, H, W) in [0, 1], the parameters of a severity, and a generator on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from mixmo.corruptions.filters import box_matrix, gaussian, separable, uniform


def contrast(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Bring values nearer to each channel's mean: (remaining share of the distance,)."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * severity[0] + mean


def saturate(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Change the saturation of HSV to factor * saturation + shift: (factor, shift); grey counts as red."""
    factor, shift = severity
    value, below = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    saturation = torch.where(value > 0, (value - below) / value, 0)
    wanted = (saturation * factor + shift).clamp(0, 1)
    red = torch.cat([value, value * (1 - wanted), value * (1 - wanted)], 1)
    return torch.where(saturation > 0, value - (value - images) * wanted / saturation, red)


def pixelate(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Shrink by a factor and grow again, both with a box filter: (factor,)."""
    height, width = images.shape[-2:]
    low, narrow = (max(1, int(side * severity[0])) for side in (height, width))
    small = separable(images, box_matrix(height, low), box_matrix(width, narrow))
    return separable((small * 255).round() / 255, box_matrix(low, height), box_matrix(narrow, width))


def jpeg_compression(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Save as a JPEG file: (quality, 1 to 100,)."""
    pixels = (images * 255).round().byte().cpu()
    files = encode_jpeg(list(pixels), int(severity[0]))
    return torch.stack([decode_jpeg(file) for file in files]).to(images) / 255


def elastic_transform(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Move three points, then every pixel by a smooth field: (amount, σ, reach of the points), shares of the side."""
    count, _, height, width = images.shape
    amount, sigma, reach = (share * min(height, width) for share in severity)
    images = _warped(images, _affine(count, height, width, reach, generator).to(images), mirror_pixels=True)
    if not amount:
        return images
    moved = (
        gaussian(uniform((count, 2, height, width), -1, 1, generator, images), sigma, "reflect", truncate=3) * amount
    )
    return _warped(images, _grid(height, width, images) + moved, mirror_pixels=False)


def _affine(count: int, height: int, width: int, reach: float, generator: torch.Generator) -> Tensor:
    """Return (count, 2, H, W): the row and column each pixel comes from, by maps that move three points; on the CPU."""
    middle, third = torch.tensor([height // 2, width // 2]), min(height, width) // 3
    points = middle + third * torch.tensor([[1, 1], [1, -1], [-1, -1]])  # (column, row), as published
    points = points.double().expand(count, 3, 2)
    targets = points + uniform((count, 3, 2), -reach, reach, generator)
    back = torch.linalg.solve(F.pad(targets, (0, 1), value=1.0), points)  # (count, 3, 2): [column, row, 1] -> source
    rows, columns = _grid(height, width, targets)
    places = torch.stack([columns, rows, torch.ones_like(rows)], -1) @ back[:, None]
    return torch.movedim(places.flip(-1), -1, 1)


def _grid(height: int, width: int, like: Tensor) -> Tensor:
    lines = (torch.arange(side, device=like.device, dtype=like.dtype) for side in (height, width))
    return torch.stack(torch.meshgrid(*lines, indexing="ij"))


def _warped(images: Tensor, places: Tensor, mirror_pixels: bool) -> Tensor:
    """Return images at the rows and columns ``places`` (B, 2, H, W), linear in between, mirrored outside.

    They are mirrored at the border's pixels, or else at their outer edges.
    """
    sides = places.new_tensor(images.shape[-2:]).view(2, 1, 1)
    scaled = 2 * places / (sides - 1) - 1 if mirror_pixels else (2 * places + 1) / sides - 1
    grid = scaled.flip(1).movedim(1, -1).to(images)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=mirror_pixels)
