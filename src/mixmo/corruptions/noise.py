"""Noise corruptions.

Each takes images (B, 3, H, W) in [0, 1], the parameters of a severity, and a generator on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixmo.corruptions.filters import normal, uniform


def gaussian_noise(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Add normal noise of the given standard deviation."""
    return images + severity[0] * normal(images.shape, generator, images)


def shot_noise(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Count photons: Poisson counts, so many on average where a channel is 1."""
    return torch.poisson((images * severity[0]).cpu(), generator).to(images) / severity[0]


def impulse_noise(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Set a share of the values to 0 or 1, each half of the time (salt and pepper)."""
    draw = uniform(images.shape, 0, 1, generator, images)
    return torch.where(draw < severity[0], (draw < severity[0] / 2).to(images), images)


def speckle_noise(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Add normal noise in proportion to the value."""
    return images + images * severity[0] * normal(images.shape, generator, images)
