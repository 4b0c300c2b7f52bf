"""Initialisation of encoders and heads: shares of trained parts, or independent draws."""

from __future__ import annotations

import torch
from torch import nn

from mixmo.errors import InputError
from mixmo.models.convolutions import is_known, scale
from mixmo.models.copying import copy_module


def parts_of_members(
    first: list[nn.Module], others: list[list[nn.Module]], count: int, fresh: bool
) -> list[list[nn.Module]]:
    """Return M modules for each place of a backbone: the first and independent draws if ``fresh``, else copies of it.

    ``others`` are the parts of the M - 1 further members, where backbones were built for them; else parts are drawn.
    """
    if not fresh:
        return [[copy_module(module) for _ in range(count)] for module in first]
    if others:
        return [list(members) for members in zip(first, *others, strict=True)]
    return [[module, *(_draw_like(module) for _ in range(count - 1))] for module in first]


@torch.no_grad()
def _draw_like(module: nn.Module) -> nn.Module:
    """Return a copy with each parameter redrawn from a normal distribution of the same mean and deviation."""
    drawn = copy_module(module)
    for parameter in drawn.parameters():
        if parameter.numel() > 1:
            parameter.copy_(torch.empty_like(parameter).normal_() * parameter.std() + parameter.mean())
    return drawn


def share_out(encoders: list[nn.Module], name: str) -> None:
    """Scale copies of a trained stem, so that their sum over the members is the trained stem again.

    Stems that standardise their weights have no scale: their sum is M times the stem, which the normalisation that
    follows undoes.
    """
    for encoder in encoders:
        if not is_known(encoder):
            raise InputError(
                f"stem {name!r} is a {type(encoder).__name__}; encoders can share a trained stem only where it is "
                "a convolution and nothing else."
            )
        scale(encoder, 1 / len(encoders))


@torch.no_grad()
def add_noise(modules: list[nn.Module], share: float) -> None:
    """Add normal noise of ``share`` of each tensor's deviation to equal modules; its sum over them is zero."""
    for tensors in zip(*(module.parameters() for module in modules), strict=True):
        if tensors[0].numel() > 1:
            noise = torch.stack([torch.empty_like(each).normal_() * (share * each.std()) for each in tensors])
            for tensor, own in zip(tensors, noise - noise.mean(0), strict=True):
                tensor.add_(own)
