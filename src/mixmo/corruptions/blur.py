"""Blur corruptions; docstrings list the parameters of a severity in parentheses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from mixmo.corruptions.filters import convolve, gaussian, motion, separable, uniform, zoom_matrix


def gaussian_blur(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Blur with a Gaussian: (σ,)."""
    return gaussian(images, severity[0])


def defocus_blur(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Blur with a disk with a smoothed edge: (radius, σ of the edge)."""
    radius, edge = severity
    reach = max(8, int(radius))
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(float)
    kernel = ndimage.gaussian_filter(disk / disk.sum(), edge, mode="mirror", radius=1 if radius <= 8 else 2)
    rows = np.flatnonzero(kernel.sum(1))
    return convolve(images, kernel[rows[0] : rows[-1] + 1, rows[0] : rows[-1] + 1])


def glass_blur(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Copy random neighbours over pixels, between two Gaussian blurs: (σ, reach, rounds).

    The published loop is meant to swap pixels, but copies one over the other because of NumPy's views.
    """
    sigma, reach, rounds = severity[0], int(severity[1]), int(severity[2])
    count, channels, height, width = images.shape
    glass = ((gaussian(images, sigma) * 255 + 1e-3).floor() / 255).flatten(2)
    for _ in range(rounds):
        steps = uniform((2, count, height, width), -reach, reach, generator, images).floor().long()
        source = trace_sources(steps[0], steps[1], reach)
        glass = glass.gather(2, source[:, None].expand(-1, channels, -1))
    return gaussian(glass.view_as(images), sigma)


def trace_sources(down: Tensor, right: Tensor, reach: int) -> Tensor:
    """Return the index (B, H * W) of the pixel that each pixel of :func:`glass_blur` comes from.

    The published loop visits pixels from the last to the first, except near the border, and copies over each its
    neighbour ``down`` rows and ``right`` columns away. A neighbour visited before has been replaced itself; such chains
    are followed for all pixels at once, by pointer doubling.
    """
    count, height, width = down.shape
    pixels = torch.arange(height * width, device=down.device).view(height, width)

    def is_visited(pixels: Tensor) -> Tensor:
        rows, columns = pixels // width, pixels % width
        inside = (rows > reach) & (rows <= height - reach) & (columns > reach) & (columns <= width - reach)
        return inside.flatten(-2)

    index = pixels.flatten().expand(count, -1)
    neighbour = torch.where(is_visited(pixels), (pixels + down * width + right).flatten(1), index)
    replaced = (neighbour > index) & is_visited(neighbour.view(count, height, width))
    final = height * width  # added to an index to mark the end of its chain
    source = torch.where(replaced, neighbour, neighbour + final)
    while bool((source < final).any()):
        source = torch.where(source < final, source.gather(1, source % final), source)
    return source - final


def motion_blur(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Blur along a line within 45° of the horizontal: (radius, σ)."""
    return motion(images, severity[0], severity[1], uniform((len(images),), -45, 45, generator))


def zoom_blur(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Average the image and its magnifications by factors from 1 to an end (exclusive): (end, step)."""
    factors = np.arange(1, *severity)
    total = images.clone()
    for factor in factors:
        total += separable(images, *(zoom_matrix(side, float(factor)) for side in images.shape[-2:]))
    return total / (len(factors) + 1)
