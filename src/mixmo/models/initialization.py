"""Initialisation of encoders and heads from trained modules or independent draws."""

from __future__ import annotations

import torch
from torch import nn

from mixmo.errors import InputError
from mixmo.models.convolutions import is_supported, scale
from mixmo.models.copying import copy_module


def make_member_modules(
    first: list[nn.Module], others: list[list[nn.Module]], count: int, fresh: bool
) -> list[list[nn.Module]]:
    """Return ``count`` modules for each of the backbone's stems or heads: copies, or independent draws if ``fresh``.

    Draws are the modules in ``first`` and in ``others``, of further backbones, or else made by :func:`_draw_like`.
    """
    if not fresh:
        return [[copy_module(module) for _ in range(count)] for module in first]
    if others:
        return [list(members) for members in zip(first, *others, strict=True)]
    return [[module, *(_draw_like(module) for _ in range(count - 1))] for module in first]


@torch.no_grad()
def _draw_like(module: nn.Module) -> nn.Module:
    """Return a copy with parameters drawn from normal distributions of the same means and deviations."""
    drawn = copy_module(module)
    for parameter in drawn.parameters():
        if parameter.numel() > 1:
            parameter.copy_(torch.empty_like(parameter).normal_() * parameter.std() + parameter.mean())
    return drawn


def divide_stem(encoders: list[nn.Module], name: str) -> None:
    """Scale the M copies of a trained stem by 1 / M, so that they sum to the stem.

    Stems that standardise their weights have no scale: they sum to M times the stem, which the following normalisation
    undoes.
    """
    for encoder in encoders:
        if not is_supported(encoder):
            raise InputError(
                f"stem {name!r} is a {type(encoder).__name__}; encoders can start from a trained stem only if it is a "
                "single convolution."
            )
        scale(encoder, 1 / len(encoders))


@torch.no_grad()
def add_noise(modules: list[nn.Module], share: float) -> None:
    """Add normal noise to equal modules: ``share`` of each tensor's standard deviation, with sum zero over them."""
    for tensors in zip(*(module.parameters() for module in modules), strict=True):
        if tensors[0].numel() > 1:
            noise = torch.stack([torch.empty_like(each).normal_() * (share * each.std()) for each in tensors])
            for tensor, difference in zip(tensors, noise - noise.mean(0), strict=True):
                tensor.add_(difference)
