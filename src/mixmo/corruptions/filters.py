"""Filters and random draws of the corruptions, for batches of images (B, C, H, W) in [0, 1] on any device.

Gaussian blurs, zooms and resampling are separable linear maps: each is a matrix for rows and one for columns, computed
by the library that the published code uses.
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
    """Return ``rows @ image @ columns.T`` for every channel of every image, with matrices (h, H) and (w, W)."""
    left, right = (torch.from_numpy(m).to(images) for m in (rows, columns))
    return left @ images @ right.T


def gaussian(images: Tensor, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> Tensor:
    """Blur images with a Gaussian of ``sigma`` pixels; ``mode`` is SciPy's, for the border."""
    units = map(np.eye, images.shape[-2:])
    filters = (ndimage.gaussian_filter1d(unit, sigma, axis=0, mode=mode, truncate=truncate) for unit in units)
    return separable(images, *filters)


def zoom_matrix(side: int, factor: float) -> np.ndarray:
    """Return the matrix (side, side) that magnifies the centre of a line by linear interpolation."""
    visible = math.ceil(side / factor)
    start = (side - visible) // 2
    zoomed = ndimage.zoom(np.eye(visible), (factor, 1), order=1)
    trim = (len(zoomed) - side) // 2
    matrix = np.zeros((side, side))
    matrix[:, start : start + visible] = zoomed[trim : trim + side]
    return matrix


def box_matrix(side: int, target: int) -> np.ndarray:
    """Return the matrix (target, side) by which Pillow resamples a line with a box filter."""
    return np.array(Image.fromarray(np.eye(side, dtype=np.float32)).resize((side, target), Image.Resampling.BOX))


def convolve(images: Tensor, kernel: np.ndarray) -> Tensor:
    """Correlate images with a kernel of odd sides, mirroring at the border's pixels (OpenCV's default)."""
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
    """Draw from the uniform distribution on [low, high), on the CPU, and move to the device and type of ``like``."""
    draws = low + (high - low) * torch.rand(size, generator=generator)
    return draws if like is None else draws.to(like)


def normal(size: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw from the standard normal distribution, as :func:`uniform` does."""
    return torch.randn(size, generator=generator).to(like)


def motion(images: Tensor, radius: float, sigma: float, angles: Tensor) -> Tensor:
    """Blur each image along a direction, as ImageMagick does, and round to multiples of 1/255.

    A pixel becomes the mean of the pixels nearest to distances i = 0 … 2 * radius along a line, with weights
    exp(-i² / 2σ²); outside, the border's pixels are repeated. Angles are in degrees clockwise from the right, on the
    CPU, since not every device has float64.
    """
    height, width = images.shape[-2:]
    steps = torch.arange(2 * int(radius) + 1, device=images.device)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    radians = angles.double().deg2rad()
    blurred = torch.zeros_like(images)
    for step, weight in enumerate(weights.tolist()):
        if weight < 1e-6:  # beyond 5σ, less than one grey level in all
            break
        components = (radians.sin(), radians.cos())
        down, right = ((step * part - 0.5).ceil().long()[:, None].to(images.device) for part in components)
        rows = (torch.arange(height, device=images.device) + down).clamp(0, height - 1)
        columns = (torch.arange(width, device=images.device) + right).clamp(0, width - 1)
        index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
        shifted = images.flatten(2).gather(2, index[:, None].expand(-1, images.shape[1], -1))
        blurred.flatten(2).add_(shifted, alpha=weight)
    return (blurred * 255).round() / 255


def plasma(count: int, height: int, width: int, decay: float, generator: torch.Generator) -> Tensor:
    """Return random height maps (count, 1, H, W) in [0, 1] by the diamond-square algorithm, on the CPU.

    ``decay`` divides the roughness from each scale to the next finer one.
    """
    side = 2 ** math.ceil(math.log2(max(height, width, 2)))
    maps = torch.zeros(count, side, side)
    step, roughness = side, 100.0

    def displace(total: Tensor) -> Tensor:
        return total / 4 + roughness * uniform(tuple(total.shape), -roughness, roughness, generator)

    while step >= 2:
        half = step // 2
        corners = maps[:, ::step, ::step]
        corners = corners + corners.roll(-1, 1)
        maps[:, half::step, half::step] = displace(corners + corners.roll(-1, 2))
        middles, corners = maps[:, half::step, half::step], maps[:, ::step, ::step]
        above_below = middles + middles.roll(1, 1)
        maps[:, ::step, half::step] = displace(above_below + corners + corners.roll(-1, 2))
        neighbours = middles + middles.roll(1, 2)
        maps[:, half::step, ::step] = displace(neighbours + corners + corners.roll(-1, 1))
        step, roughness = half, roughness / decay
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low))[:, None, :height, :width]
