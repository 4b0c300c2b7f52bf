"""Noise corruptions; docstrings list the parameters of a severity in parentheses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixmo.corruptions.filters import normal, uniform


def gaussian_noise(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Add normal noise: (standard deviation,)."""
    return images + severity[0] * normal(images.shape, generator, images)


def shot_noise(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Draw Poisson noise with mean photons × intensity: (photons,)."""
    return torch.poisson((images * severity[0]).cpu(), generator).to(images) / severity[0]


def impulse_noise(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Set values to 0 or 1 with equal probabilities (salt and pepper): (share of the values,)."""
    draw = uniform(images.shape, 0, 1, generator, images)
    return torch.where(draw < severity[0], (draw < severity[0] / 2).to(images), images)


def speckle_noise(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Add normal noise in proportion to the value: (standard deviation,)."""
    return images + images * severity[0] * normal(images.shape, generator, images)
