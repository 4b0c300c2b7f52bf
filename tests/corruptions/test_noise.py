"""Moments of the noise."""

import math

import pytest
import torch

from mixmo.corruptions import KINDS, SEVERITIES, SMALL, noise


@pytest.mark.parametrize("severity", SEVERITIES)
def test_moments_of_noise(severity):
    level, generator = 0.4, torch.Generator().manual_seed(severity)
    flat = torch.full((8, 3, 64, 64), level)
    for kind, deviation in [
        ("gaussian_noise", SMALL["gaussian_noise"][severity - 1][0]),
        ("speckle_noise", level * SMALL["speckle_noise"][severity - 1][0]),
        ("shot_noise", math.sqrt(level / SMALL["shot_noise"][severity - 1][0])),
    ]:
        noisy = KINDS[kind](flat, SMALL[kind][severity - 1], generator)
        assert noisy.mean().item() == pytest.approx(level, abs=0.002), kind
        assert noisy.std().item() == pytest.approx(deviation, rel=0.02), kind
    share = SMALL["impulse_noise"][severity - 1][0]
    noisy = noise.impulse_noise(flat, (share,), generator)
    for value in (0, 1):
        assert (noisy == value).float().mean().item() == pytest.approx(share / 2, abs=0.002)
