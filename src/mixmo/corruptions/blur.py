"""Blur corruptions.

Each takes images (B, 3, H, W) in [0, 1], the parameters of a severity, and a generator on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from mixmo.corruptions.filters import convolve, gaussian, motion, separable, uniform, zoom_matrix


def gaussian_blur(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Blur by a Gaussian: (σ,)."""
    return gaussian(images, severity[0])


def defocus_blur(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Blur by a disk whose edge is smoothed: (radius, σ of the edge)."""
    radius, edge = severity
    reach = max(8, int(radius))
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(float)
    kernel = ndimage.gaussian_filter(disk / disk.sum(), edge, mode="mirror", radius=1 if radius <= 8 else 2)
    rows = np.flatnonzero(kernel.sum(1))
    return convolve(images, kernel[rows[0] : rows[-1] + 1, rows[0] : rows[-1] + 1])


def glass_blur(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Replace pixels by neighbours, between two blurs: (σ, reach, rounds).

    The published loop is meant to swap two pixels, but copies one over the other (NumPy views); this does the same.
    """
    sigma, reach, rounds = severity[0], int(severity[1]), int(severity[2])
    count, channels, height, width = images.shape
    glass = ((gaussian(images, sigma) * 255 + 1e-3).floor() / 255).flatten(2)
    for _ in range(rounds):
        steps = uniform((2, count, height, width), -reach, reach, generator, images).floor().long()
        place = shuffled(steps[0], steps[1], reach)
        glass = glass.gather(2, place[:, None].expand(-1, channels, -1))
    return gaussian(glass.view_as(images), sigma)


def shuffled(down: Tensor, right: Tensor, reach: int) -> Tensor:
    """Return where each pixel of :func:`glass_blur` comes from, (B, H * W).

    The loop visits pixels from the last to the first and copies over each its neighbour, so many rows down and columns
    to the right; pixels nearer to the border than ``reach`` stay. A neighbour that was visited before has its own
    origin by then; these chains are followed for all pixels at once, doubling what is known.
    """
    count, height, width = down.shape
    place = torch.arange(height * width, device=down.device).view(height, width)

    def list_swaps(pixels: Tensor) -> Tensor:
        rows, columns = pixels // width, pixels % width
        inside = (rows > reach) & (rows <= height - reach) & (columns > reach) & (columns <= width - reach)
        return inside.flatten(-2)

    neighbour = (place + down * width + right).flatten(1)
    own = place.flatten().expand(count, -1)
    neighbour = torch.where(list_swaps(place), neighbour, own)
    settled = height * width  # from here on a number means: the original of this pixel less `settled`
    later = (neighbour > own) & list_swaps(neighbour.view(count, height, width))
    origin = torch.where(later, neighbour, neighbour + settled)
    while bool((origin < settled).any()):
        origin = torch.where(origin < settled, origin.gather(1, origin % settled), origin)
    return origin - settled


def motion_blur(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Blur along a line within 45° of the horizontal: (radius, σ)."""
    return motion(images, severity[0], severity[1], uniform((len(images),), -45, 45, generator))


def zoom_blur(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Take the mean of the image and its magnifications: (end of the factors from 1 on, their step)."""
    factors = np.arange(1, *severity)
    total = images.clone()
    for factor in factors:
        total += separable(images, *(zoom_matrix(side, float(factor)) for side in images.shape[-2:]))
    return total / (len(factors) + 1)
