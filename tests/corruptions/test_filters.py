"""Filters that corruptions share, against SciPy and loops."""

import math

import numpy as np
import pytest
import torch
from photographs import as_floats, pictures
from scipy import ndimage

from mixmo.corruptions import filters


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1, 6])
@pytest.mark.parametrize("mode", ["nearest", "reflect"])
def test_gaussian_is_scipys(sigma, mode):
    images = pictures()
    found = filters.gaussian(as_floats(images), sigma, mode)
    expected = ndimage.gaussian_filter(as_floats(images).double().numpy(), (0, 0, sigma, sigma), mode=mode)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 1.04, 1.11, 1.25, 1.75, 2.25])
def test_zooming_is_scipys(factor):
    images = pictures()
    matrix = filters.zoom_matrix(32, factor)
    found = filters.separable(as_floats(images), matrix, matrix)
    for image, own in zip(images.numpy() / 255, found, strict=True):
        seen = math.ceil(32 / factor)
        top = (32 - seen) // 2
        grown = ndimage.zoom(image[top : top + seen, top : top + seen], (factor, factor, 1), order=1)
        trim = (len(grown) - 32) // 2
        np.testing.assert_allclose(own.permute(1, 2, 0), grown[trim : trim + 32, trim : trim + 32], atol=1e-6)


@pytest.mark.parametrize(("radius", "sigma", "angle"), [(6, 1, 30), (8, 2, -45), (14, 12, -100), (9, 2.5, 0)])
def test_motion_is_a_walk_along_a_line(radius, sigma, angle):
    images = pictures()
    found = filters.motion(as_floats(images)[:1], radius, sigma, torch.tensor([float(angle)]))[0]
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    step_x, step_y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    image = images[0].numpy() / 255
    for y, x in [(0, 0), (3, 7), (16, 16), (31, 31), (0, 31), (20, 2)]:
        total = np.zeros(3)
        for i, weight in enumerate(weights):
            row, column = y + math.ceil(i * step_y - 0.5), x + math.ceil(i * step_x - 0.5)
            total += weight * image[min(max(row, 0), 31), min(max(column, 0), 31)]
        np.testing.assert_allclose(found[:, y, x], total, atol=0.003)  # it comes in steps of 1/255


def test_plasma_is_diamond_square(monkeypatch):
    draws = np.random.default_rng(0).uniform(-1, 1, 1000)
    used = 0

    def scripted(size, low, high, generator):
        nonlocal used
        used += (count := math.prod(size))
        return torch.from_numpy(high * draws[used - count : used]).view(size)

    monkeypatch.setattr(filters, "uniform", scripted)
    found = filters.plasma(1, 8, 8, 3.0, torch.Generator())[0, 0]
    grid, side, step, wobble = {(0, 0): 0.0}, 8, 8, 100.0
    script = iter(draws)
    while step >= 2:
        half = step // 2
        corners = range(0, side, step)
        passes = [  # (where, from which four neighbours)
            ([(y + half, x + half) for y in corners for x in corners], [(-1, -1), (-1, 1), (1, -1), (1, 1)]),
            ([(y, x + half) for y in corners for x in corners], [(0, -1), (0, 1), (-1, 0), (1, 0)]),
            ([(y + half, x) for y in corners for x in corners], [(0, -1), (0, 1), (-1, 0), (1, 0)]),
        ]
        for places, around in passes:
            for y, x in places:
                near = [grid[(y + dy * half) % side, (x + dx * half) % side] for dy, dx in around]
                grid[y, x] = sum(near) / 4 + wobble * wobble * next(script)
        step, wobble = half, wobble / 3
    expected = np.array([[grid[y, x] for x in range(side)] for y in range(side)])
    expected = (expected - expected.min()) / np.ptp(expected)
    np.testing.assert_allclose(found, expected, atol=1e-5)
