"""Sharpness-aware minimisation (SAM, Foret et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mixmo.training.ranks import total_norm


@contextmanager
def perturb_weights(net: nn.Module, radius: float) -> Iterator[None]:
    """Hold the weights at w + radius · g / ‖g‖ inside this context, g being their gradient (equation 2).

    After it weights and buffers, such as batch-norm statistics, are as they were; gradients are what was made of them.

    Args:
        net: With gradients.
        radius: Positive.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> layer.weight.grad, before = torch.tensor([[-3.0]]), layer.weight.item()
        >>> with perturb_weights(layer, 0.5):
        ...     round(layer.weight.item() - before, 4)
        -0.5
    """
    weights = [each for each in net.parameters() if each.grad is not None]
    gradients = [each.grad for each in weights if each.grad is not None]
    kept = [each.detach().clone() for each in (*weights, *net.buffers())]
    scale = radius / (total_norm(gradients) + 1e-12)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.add_(gradient * scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for own, before in zip((*weights, *net.buffers()), kept, strict=True):
                own.copy_(before)
