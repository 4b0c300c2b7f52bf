"""Masks with smooth random outlines: level sets of random fields."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixmo.masks.parts import FeatureShape, Generator, Roles, assign, by_rank

COW_SIGMAS = (4.0, 16.0)
FMIX_DECAY = 3.0


def cow(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give each member a level set of blurred noise (CowMask, French et al. 2020).

    White noise is blurred by a Gaussian with a standard deviation log-uniform between 4 and 16 cells; the member with
    role 0 gets the lowest kappa_1 of the values, the others the levels above. Expected area: kappa_i, up to one cell.
    The reference code instead draws the threshold uniformly from 0.2 to 0.8, independent of kappa.

    Masks (B, M, 1, h, w) of 0 and 1.

    Example:
        >>> from mixmo.masks.parts import picture
        >>> print(picture(cow(torch.tensor([[0.4, 0.6]]), (16, 6, 12), torch.Generator().manual_seed(0))))
        000000111110
        000001111111
        000011111111
        000011111111
        000011111111
        000001111111
        >>> cow(torch.tensor([[0.25, 0.75]]), (16, 8, 8), torch.Generator().manual_seed(0)).mean((2, 3, 4)).tolist()
        [[0.25, 0.75]]
    """
    (_, height, width), batch, device = shape, len(ratios), ratios.device
    low, high = (math.log(sigma) for sigma in COW_SIGMAS)
    sigma = (low + (high - low) * torch.rand(batch, generator=generator, dtype=torch.float32, device=device)).exp()
    noise = torch.randn(batch, height, width, generator=generator, dtype=torch.float32, device=device)
    field = _gaussian(sigma, height) @ noise @ _gaussian(sigma, width)
    return assign(by_rank(field.flatten(1), ratios), roles).view(*ratios.shape, 1, height, width)


def _gaussian(sigma: Tensor, size: int) -> Tensor:
    """Return the (B, size, size) matrices of a Gaussian blur along an axis, with zero padding."""
    position = torch.arange(size, device=sigma.device)
    return (-0.5 * ((position[:, None] - position) / sigma[:, None, None]).square()).exp()


def fmix(ratios: Tensor, shape: FeatureShape, generator: Generator = None, roles: Roles = None) -> Tensor:
    """Give each member a level set of low-frequency noise (FMix, Harris et al. 2020).

    The noise is the inverse Fourier transform of a complex Gaussian spectrum divided by frequency³; levels are shared
    as in :func:`cow`. Expected area: kappa_i, up to one cell.

    Masks (B, M, 1, h, w) of 0 and 1.

    Example:
        >>> from mixmo.masks.parts import picture
        >>> print(picture(fmix(torch.tensor([[0.4, 0.6]]), (16, 6, 12), torch.Generator().manual_seed(0))))
        111111110000
        111111100000
        111111110000
        011111110000
        010111110000
        011111110000
        >>> fmix(torch.tensor([[0.25, 0.75]]), (16, 8, 8), torch.Generator().manual_seed(0)).mean((2, 3, 4)).tolist()
        [[0.25, 0.75]]
    """
    (_, height, width), device = shape, ratios.device
    rows = torch.fft.fftfreq(height, dtype=torch.float32, device=device)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=torch.float32, device=device)
    frequency = (rows.square() + columns.square()).sqrt().clamp(min=1 / max(height, width))
    size = (len(ratios), height, len(columns), 2)
    spectrum = torch.view_as_complex(torch.randn(size, generator=generator, dtype=torch.float32, device=device))
    field = torch.fft.irfft2(spectrum / frequency**FMIX_DECAY, s=(height, width))
    return assign(by_rank(field.flatten(1), ratios), roles).view(*ratios.shape, 1, height, width)
