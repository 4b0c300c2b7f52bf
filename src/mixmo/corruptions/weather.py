"""Weather corruptions; docstrings list the parameters of a severity in parentheses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixmo.corruptions.filters import gaussian, motion, normal, plasma, separable, uniform, zoom_matrix
from mixmo.corruptions.relief import water_relief

WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)
ICE = (0.86, 0.93, 1.0)


def snow(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Whiten the image and add flakes: (their mean, deviation, zoom, threshold, blur radius and σ, image's weight)."""
    mean, deviation, zoom, threshold, radius, sigma, weight = severity
    count, _, height, width = images.shape
    flakes = mean + deviation * normal((count, 1, height, width), generator, images)
    flakes = separable(flakes, zoom_matrix(height, zoom), zoom_matrix(width, zoom))
    flakes = torch.where(flakes < threshold, 0, flakes).clamp(0, 1)
    flakes = motion((flakes * 255).floor() / 255, radius, sigma, uniform((count,), -135, -45, generator))
    pale = torch.maximum(images, grey(images) * 1.5 + 0.5)
    return weight * images + (1 - weight) * pale + flakes + flakes.flip(2, 3)


def frost(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Add ice to the image: (weight of the image, weight of the ice).

    The published code pastes photographs of frosted windows; here ice is bluish-white ridges of a plasma fractal.
    """
    count, _, height, width = images.shape
    ridges = 1 - (2 * plasma(count, height, width, 1.6, generator).to(images) - 1).abs()
    return severity[0] * images + severity[1] * ridges**2 * _colour(ICE, images)


def fog(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Add a plasma fractal and rescale to the image's maximum: (thickness, decay)."""
    thickness, decay = severity
    brightest = images.amax((1, 2, 3), keepdim=True)
    mist = thickness * plasma(len(images), images.shape[2], images.shape[3], decay, generator).to(images)
    return (images + mist) * brightest / (brightest + thickness)


def spatter(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Add drops of water, or mud: (their mean, deviation, σ and threshold, strength or σ of the rim, mud or not)."""
    mean, deviation, sigma, threshold, strength, mud = severity
    count, _, height, width = images.shape
    drops = gaussian(mean + deviation * normal((count, 1, height, width), generator, images), sigma)
    if mud:
        cover = gaussian((drops > threshold).to(images), strength)
        cover = torch.where(cover < 0.8, 0, cover)
        return images * (1 - cover) + cover * _colour(MUD, images)
    drops = torch.where(drops < threshold, 0, drops)
    drops = (drops.clamp(0, 1) * 255).floor()
    relief = drops * water_relief(drops)
    relief = relief / relief.amax((2, 3), keepdim=True).clamp(min=1)  # without drops the published code gives 0 / 0
    return images + strength * relief * _colour(WATER, images)


def brightness(images: Tensor, severity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Raise HSV's value: (increase,)."""
    value = images.amax(1, keepdim=True)
    raised = (value + severity[0]).clamp(max=1)
    return torch.where(value > 0, images * raised / value, raised)


def grey(images: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W) of RGB images (ITU-R BT.601)."""
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def _colour(colour: Sequence[float], images: Tensor) -> Tensor:
    return images.new_tensor(colour).view(3, 1, 1)
