"""Initialisation of encoders and heads from trained modules or independent draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixmo.errors import InputError
from mixmo.models.convolutions import (
    SCALED,
    STANDARDISED,
    effective_weight,
    is_supported,
    scale,
    set_effective_weight,
)
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
    """Add normal noise to equal modules: ``share`` of each tensor's standard deviation, with sum zero over them.

    Convolutions that standardise their weights get noise on the standardised ones, in which they are summed.
    """
    if not share:
        return
    if type(modules[0]) in STANDARDISED:
        raise InputError(
            f"noise is {share}, but the stem standardises its weights ({type(modules[0]).__name__}), so encoders with "
            "noise would not sum to the trained stem; set it to 0."
        )
    if type(modules[0]) in SCALED:
        weights = [effective_weight(each) for each in modules]
        for module, weight, noise in zip(modules, weights, _draw_noise(weights, share), strict=True):
            set_effective_weight(module, weight + noise - noise.mean((1, 2, 3), keepdim=True))
        return
    for tensors in zip(*(module.parameters() for module in modules), strict=True):
        if tensors[0].numel() > 1:
            for tensor, noise in zip(tensors, _draw_noise(tensors, share), strict=True):
                tensor.add_(noise)


def _draw_noise(tensors: Sequence[Tensor], share: float) -> Tensor:
    noise = torch.stack([torch.empty_like(each).normal_() * (share * each.std()) for each in tensors])
    return noise - noise.mean(0)
