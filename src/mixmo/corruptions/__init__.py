"""The 19 common corruptions of Hendrycks & Dietterich (2019), for whole batches on any device.

They follow the released code of https://arxiv.org/abs/1903.12261 that made CIFAR-10-C and ImageNet-C, with its
severities, but with other random draws; ``frost`` draws its ice instead of pasting photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mixmo.corruptions import blur, digital, noise, weather
from mixmo.corruptions.severities import LARGE, SMALL, Severities
from mixmo.errors import InputError, one_of

__all__ = ["KINDS", "LARGE", "LARGE_SIDE", "SEVERITIES", "SMALL", "corrupt", "table_for"]

Corruption = Callable[[Tensor, Sequence[float], torch.Generator], Tensor]
"""Maps images (B, 3, H, W) in [0, 1], a severity's parameters and a generator on the CPU to corrupted images."""

KINDS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        noise.gaussian_noise, noise.shot_noise, noise.impulse_noise, noise.speckle_noise,
        blur.gaussian_blur, blur.defocus_blur, blur.glass_blur, blur.motion_blur, blur.zoom_blur,
        weather.snow, weather.frost, weather.fog, weather.spatter, weather.brightness,
        digital.contrast, digital.saturate, digital.pixelate, digital.jpeg_compression, digital.elastic_transform,
    )
}  # fmt: skip
"""Corruptions by the names of their published files."""

SEVERITIES = (1, 2, 3, 4, 5)
LARGE_SIDE = 112
"""Images whose shorter side is at least this get ImageNet-C's severities, smaller ones CIFAR-C's."""


def table_for(height: int, width: int) -> dict[str, Severities]:
    """Return the severities for images of a size."""
    return LARGE if min(height, width) >= LARGE_SIDE else SMALL


def corrupt(images: Tensor, kind: str, severity: int, generator: torch.Generator) -> Tensor:
    """Return corrupted copies of images.

    Args:
        images: (B, H, W, C) uint8; C = 3 (RGB) or 1 (grey, corrupted as RGB and converted back, so that ``saturate``
            has little effect).
        kind: One of :data:`KINDS`.
        severity: 1 to 5.
        generator: A CPU generator, so that draws are the same for all devices.

    Returns:
        (B, H, W, C) uint8.

    Raises:
        InputError: if the kind or the severity is unknown, or the images have another shape or type.

    Example:
        >>> images = torch.full((2, 32, 32, 3), 100, dtype=torch.uint8)
        >>> corrupt(images, "brightness", 5, torch.Generator()).unique()
        tensor([176], dtype=torch.uint8)
    """
    one_of(kind, KINDS, "corruption")
    if severity not in SEVERITIES:
        raise InputError(f"severity {severity} of {kind} is unknown; it must be 1 to 5.")
    if images.dim() != 4 or images.shape[3] not in (1, 3) or images.dtype != torch.uint8:
        raise InputError(f"images of shape {tuple(images.shape)}, {images.dtype}, are not (B, H, W, 3 or 1) uint8.")
    _, height, width, channels = images.shape
    pixels = (images.float() / 255).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()
    corrupted = KINDS[kind](pixels, table_for(height, width)[kind][severity - 1], generator).clamp(0, 1)
    if channels == 1:
        corrupted = weather.grey(corrupted)
    levels = (corrupted * 255 + 1e-3).floor()  # rounded down, as published; 1e-3 for float32
    return levels.byte().permute(0, 2, 3, 1).contiguous()
