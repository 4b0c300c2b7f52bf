"""Optimisers by timm's names, and the learning rate at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import timm.optim
import torch
from torch import nn

from mixmo.errors import one_of


def build_optimizer(
    net: nn.Module,
    name: str = "sgd",
    lr: float = 0.05,
    weight_decay: float = 6e-4,
    momentum: float = 0.9,
    decay_all: bool = True,
    **options: Any,
) -> torch.optim.Optimizer:
    """Return an optimiser by timm's name: ``sgd`` is SGD with Nesterov momentum, ``adamw`` AdamW, ….

    The paper adds 3e-4 * Σθ² to the loss over all parameters. Its gradient is 6e-4 * θ, hence
    ``weight_decay=6e-4`` for SGD with ``decay_all``, batch norms and biases included.

    Args:
        net: The network.
        name: A name of ``timm.optim.list_optimizers()``.
        lr: Peak learning rate.
        weight_decay: Decay, as the optimiser defines it.
        momentum: Momentum (SGD) or what stands for it.
        decay_all: Decay one-dimensional parameters too.
        **options: More keywords of the optimiser.

    Raises:
        ValueError: if the name or an option is unknown.

    Example:
        >>> build_optimizer(nn.Linear(2, 2), "sgd", lr=0.1).defaults["nesterov"]
        True
    """
    one_of(name, timm.optim.list_optimizers(), "optimizer")
    try:
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            net, name, lr=lr, weight_decay=weight_decay, momentum=momentum, filter_bias_and_bn=not decay_all, **options
        )
    except TypeError as error:
        raise ValueError(f"optimizer {name!r} does not take {options}: {error}") from error
    return optimizer
