"""Checks of a user's mask function."""

from __future__ import annotations

import torch
from torch import Tensor

from mixmo.errors import InputError, explain_errors
from mixmo.masks.parts import FeatureShape, MaskFunction


def try_masks(function: MaskFunction, members: int, shape: FeatureShape, name: str = "") -> None:
    """Raise if a mask function fails for four samples, or its masks break the conventions of ``mixmo.masks``.

    ``members`` is M, ``shape`` that of an encoder's output, and ``name`` the function's name in messages.

    Example:
        >>> def half(ratios, shape, generator, roles):
        ...     return torch.full((len(ratios), 2, 1, *shape[1:]), 0.4)
        >>> try_masks(half, members=2, shape=(8, 4, 4))
        Traceback (most recent call last):
        mixmo.errors.InputError: mask kind 'half' returns masks that sum to 0.8, not one, over the members.
    """
    name = name or getattr(function, "__name__", type(function).__name__)
    ratios = torch.arange(1.0, members + 1).expand(4, members) / (members * (members + 1) / 2)
    for roles in (torch.arange(members), torch.arange(members).expand(4, members)):  # Mixer.draw_per
        with explain_errors(f"mask kind {name!r} fails on maps of {shape} with roles of shape {tuple(roles.shape)}"):
            masks, again = (function(ratios, shape, torch.Generator().manual_seed(0), roles) for _ in range(2))
        sizes = [(4, members, channels, *shape[1:]) for channels in (1, shape[0])]
        if not isinstance(masks, Tensor) or tuple(masks.shape) not in sizes:
            returned = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
            raise InputError(f"mask kind {name!r} returns {returned}, not masks of shape {sizes[0]} or {sizes[1]}.")
        if not masks.is_floating_point() or not bool(((masks >= 0) & (masks <= 1)).all()):
            raise InputError(f"mask kind {name!r} returns values outside [0, 1], or not floating-point.")
        total = masks.sum(1)
        worst = total.flatten()[(total - 1).abs().argmax()].item()
        if abs(worst - 1) > 1e-4:
            raise InputError(f"mask kind {name!r} returns masks that sum to {worst:.3g}, not one, over the members.")
        if not torch.equal(masks, again):
            raise InputError(f"mask kind {name!r} draws random numbers from elsewhere than its generator.")
