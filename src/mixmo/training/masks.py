"""User-defined masks, imported by path and tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mixmo.config.imports import is_import_path, resolve
from mixmo.errors import InputError, reason
from mixmo.masks import FeatureShape, MaskFunction
from mixmo.mixing import Kind


def find_masks(
    kind: str | Mapping[str, float], allowed: Sequence[str], members: int, shape: FeatureShape
) -> dict[Kind, float]:
    """Return a recipe's kinds of masks with their probabilities; those named by import path as functions, each tried.

    Args:
        kind: The recipe's kind, or kinds with their probabilities.
        allowed: The modules that may be imported.
        members: M.
        shape: (F, h, w) of the encoders' output.

    Raises:
        InputError: if a kind is not allowed, or does not return masks (:func:`check_masks`).

    Example:
        >>> find_masks("mixmo.masks.splits:vertical", ["mixmo.masks.splits"], 2, (16, 8, 8))
        {<function vertical at ...>: 1.0}
    """
    found: dict[Kind, float] = {}
    for name, probability in ({kind: 1.0} if isinstance(kind, str) else kind).items():
        if is_import_path(name):
            function = resolve(name, allowed)
            check_masks(name, function, members, shape)
            found[function] = probability
        else:
            found[name] = probability
    return found


def check_masks(name: str, function: MaskFunction, members: int, shape: FeatureShape) -> None:
    """Try a mask's function on four samples.

    Args:
        name: What to call it.
        function: As ``mixmo.masks`` describes it.
        members: M.
        shape: (F, h, w).

    Raises:
        InputError: if it fails, or does not return (4, M, 1 or F, h, w) in [0, 1] that sum to one over the members.

    Example:
        >>> check_masks("half", lambda ratios, shape, *_: torch.full((4, 2, 1, *shape[1:]), 0.4), 2, (8, 4, 4))
        Traceback (most recent call last):
        mixmo.errors.InputError: mask kind 'half' returns masks that sum to 0.8, not one, over the members.
    """
    ratios = torch.full((4, members), 1 / members)
    roles = torch.arange(members).expand(4, members)
    try:
        masks = function(ratios, shape, torch.Generator().manual_seed(0), roles)
    except Exception as error:  # a user's function: show what it raises
        raise InputError(f"mask kind {name!r} fails on maps of {shape}: {reason(error)}.") from error
    sizes = [(4, members, channels, *shape[1:]) for channels in (1, shape[0])]
    if not isinstance(masks, torch.Tensor) or tuple(masks.shape) not in sizes:
        returned = tuple(masks.shape) if isinstance(masks, torch.Tensor) else type(masks).__name__
        raise InputError(f"mask kind {name!r} returns {returned}; masks have the shape {sizes[0]} or {sizes[1]}.")
    if not masks.is_floating_point() or not bool(((masks >= 0) & (masks <= 1)).all()):
        raise InputError(f"mask kind {name!r} returns values outside [0, 1], or no floating-point numbers.")
    total = masks.sum(1)
    worst = total.flatten()[(total - 1).abs().argmax()].item()
    if abs(worst - 1) > 1e-4:
        raise InputError(f"mask kind {name!r} returns masks that sum to {worst:.3g}, not one, over the members.")
