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
    """Return M modules for each place of a backbone: copies of trained ones, or independent draws.

    Args:
        first: The module in each place.
        others: Those of the M - 1 further members, where backbones were built for them; otherwise empty.
        count: M.
        fresh: Whether they are draws: the first, and the others' or draws like it. Copies otherwise.

    Example:
        >>> [[one, two, three]] = parts_of_members([nn.Linear(2, 3)], [], 3, fresh=False)
        >>> torch.equal(one.weight, three.weight)
        True
    """
    return [_members(module, count, fresh, [own[place] for own in others]) for place, module in enumerate(first)]


def _members(module: nn.Module, count: int, fresh: bool, others: list[nn.Module]) -> list[nn.Module]:
    if not fresh:
        return [copy_module(module) for _ in range(count)]
    return [module, *(others or (draw_like(module) for _ in range(count - 1)))]


@torch.no_grad()
def draw_like(module: nn.Module) -> nn.Module:
    """Return a copy with each parameter redrawn from a normal distribution of the same mean and deviation.

    Example:
        >>> draw_like(nn.Linear(2, 3)).weight.shape
        torch.Size([3, 2])
    """
    drawn = copy_module(module)
    for parameter in drawn.parameters():
        if parameter.numel() > 1:
            parameter.copy_(torch.empty_like(parameter).normal_() * parameter.std() + parameter.mean())
    return drawn


def share_out(encoders: list[nn.Module], name: str) -> None:
    """Scale copies of a trained stem, so that their sum over the members is the trained stem again.

    Stems that standardise their weights have no scale: their sum is M times the stem, which the normalisation that
    follows undoes.

    Args:
        encoders: The M copies; changed.
        name: Where the stem is in its backbone, for the error.

    Raises:
        InputError: if the stem is more than a convolution.

    Example:
        >>> stem = nn.Conv2d(3, 8, 3)
        >>> encoders = [copy_module(stem), copy_module(stem)]
        >>> share_out(encoders, "conv1")
        >>> torch.equal(encoders[0].weight + encoders[1].weight, stem.weight)
        True
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
    """Add normal noise in proportion to each tensor's standard deviation; it sums to zero over the modules.

    Args:
        modules: Equal ones; changed.
        share: The noise's standard deviation over the tensor's.

    Example:
        >>> layer = nn.Linear(8, 8)
        >>> one, two = copy_module(layer), copy_module(layer)
        >>> add_noise([one, two], 0.1)
        >>> torch.equal(one.weight, two.weight), torch.allclose((one.weight + two.weight) / 2, layer.weight)
        (False, True)
    """
    for tensors in zip(*(module.parameters() for module in modules), strict=True):
        if tensors[0].numel() > 1:
            noise = torch.stack([torch.empty_like(each).normal_() * (share * each.std()) for each in tensors])
            for tensor, own in zip(tensors, noise - noise.mean(0), strict=True):
                tensor.add_(own)
