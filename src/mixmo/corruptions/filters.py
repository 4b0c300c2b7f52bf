"""Filters and draws that corruptions share, for a whole batch of images (B, C, H, W) in [0, 1] on any device.

Blurs, zooms and resampling are linear and work on rows and columns separately, so that each is two matrices, taken from
the library that the published code uses.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor


def separable(images: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """Return ``rows @ image @ columns.T`` of every channel of every image, for matrices (h, H) and (w, W)."""
    left, right = (torch.from_numpy(m).to(images) for m in (rows, columns))
    return left @ images @ right.T


def gaussian(images: Tensor, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> Tensor:
    """Return images blurred by a Gaussian of ``sigma`` pixels, with SciPy's modes at the border."""
    unit = map(np.eye, images.shape[-2:])
    filters = (ndimage.gaussian_filter1d(each, sigma, axis=0, mode=mode, truncate=truncate) for each in unit)
    return separable(images, *filters)


def zoom_matrix(side: int, factor: float) -> np.ndarray:
    """Return the matrix (side, side) that magnifies the center of a line, interpolating linearly."""
    seen = math.ceil(side / factor)
    start = (side - seen) // 2
    grown = ndimage.zoom(np.eye(seen), (factor, 1), order=1)
    trim = (len(grown) - side) // 2
    matrix = np.zeros((side, side))
    matrix[:, start : start + seen] = grown[trim : trim + side]
    return matrix


def box_matrix(side: int, wanted: int) -> np.ndarray:
    """Return the matrix (wanted, side) of Pillow's resampling of a line by its box filter."""
    return np.array(Image.fromarray(np.eye(side, dtype=np.float32)).resize((side, wanted), Image.Resampling.BOX))


def convolve(images: Tensor, kernel: np.ndarray) -> Tensor:
    """Return images correlated with a kernel of odd sides, mirrored at the border's pixels (OpenCV's default)."""
    rows, columns = (
        torch.from_numpy(np.pad(np.arange(side), size // 2, mode="reflect")).to(images.device)
        for side, size in zip(images.shape[-2:], kernel.shape, strict=True)
    )
    weight = torch.from_numpy(kernel).to(images)[None, None]
    padded = images[..., rows, :][..., columns].flatten(0, 1)[:, None]
    return F.conv2d(padded, weight).view(images.shape)


def uniform(
    size: tuple[int, ...], low: float, high: float, generator: torch.Generator, like: Tensor | None = None
) -> Tensor:
    """Return draws of the uniform distribution on [low, high), brought to the device and type of ``like``.

    They are drawn on the CPU, where the generator is, so that every device sees the same.
    """
    draws = low + (high - low) * torch.rand(size, generator=generator)
    return draws if like is None else draws.to(like)


def normal(size: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Return draws of the standard normal distribution, as :func:`uniform` does."""
    return torch.randn(size, generator=generator).to(like)


def motion(images: Tensor, radius: float, sigma: float, angles: Tensor) -> Tensor:
    """Return images blurred along one direction each, as ImageMagick does, in steps of 1/255.

    A pixel becomes the mean of those behind it on a line, with weights exp(-i² / 2σ²), i = 0 … 2 * radius, each at the
    nearest pixel; the border's pixels are repeated outside. Angles are in degrees clockwise from the right, on the CPU,
    since not every device has float64.
    """
    height, width = images.shape[-2:]
    steps = torch.arange(2 * int(radius) + 1, device=images.device)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    radians = angles.double().deg2rad()
    blurred = torch.zeros_like(images)
    for step, weight in enumerate(weights.tolist()):
        if weight < 1e-6:  # beyond 5σ: less than a grey level in sum
            break
        turns = (radians.sin(), radians.cos())
        down, right = ((step * turn - 0.5).ceil().long()[:, None].to(images.device) for turn in turns)
        rows = (torch.arange(height, device=images.device) + down).clamp(0, height - 1)
        columns = (torch.arange(width, device=images.device) + right).clamp(0, width - 1)
        place = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
        moved = images.flatten(2).gather(2, place[:, None].expand(-1, images.shape[1], -1))
        blurred.flatten(2).add_(moved, alpha=weight)
    return (blurred * 255).round() / 255


def plasma(count: int, height: int, width: int, decay: float, generator: torch.Generator) -> Tensor:
    """Return random height maps (count, 1, H, W) in [0, 1] by the diamond-square algorithm, on the CPU.

    ``decay`` is the divisor of the roughness from one scale to the next finer one.
    """
    side = 2 ** math.ceil(math.log2(max(height, width, 2)))
    maps = torch.zeros(count, side, side)
    step, wobble = side, 100.0

    def settle(corners: Tensor) -> Tensor:
        return corners / 4 + wobble * uniform(tuple(corners.shape), -wobble, wobble, generator)

    while step >= 2:
        half = step // 2
        corners = maps[:, ::step, ::step]
        corners = corners + corners.roll(-1, 1)
        maps[:, half::step, half::step] = settle(corners + corners.roll(-1, 2))
        middles, corners = maps[:, half::step, half::step], maps[:, ::step, ::step]
        above_below = middles + middles.roll(1, 1)
        maps[:, ::step, half::step] = settle(above_below + corners + corners.roll(-1, 2))
        neighbours = middles + middles.roll(1, 2)
        maps[:, half::step, ::step] = settle(neighbours + corners + corners.roll(-1, 1))
        step, wobble = half, wobble / decay
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low))[:, None, :height, :width]
