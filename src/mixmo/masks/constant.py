"""Masks that are the same at every position."""

from __future__ import annotations

import torch
from torch import Tensor

from mixmo.masks.parts import FeatureShape, Generator, Roles


def mimo(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give every member 1/M everywhere, regardless of the ratios (Havasi et al. 2021).

    Masks (B, M, 1, h, w).

    Example:
        >>> mimo(torch.tensor([[0.2, 0.8]]), (16, 1, 2)).flatten().tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    return linear(torch.full_like(ratios, 1 / ratios.shape[1]), shape)


def linear(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give member i its ratio everywhere: mask_i = kappa_i (Linear-MixMo, section 3.2 of the paper).

    Masks (B, M, 1, h, w), an expanded view of ``ratios``.

    Example:
        >>> linear(torch.tensor([[0.25, 0.75]]), (16, 1, 2)).flatten().tolist()
        [0.25, 0.25, 0.75, 0.75]
    """
    _, height, width = shape
    return ratios[:, :, None, None, None].expand(-1, -1, 1, height, width)
