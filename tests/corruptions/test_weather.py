"""Weather: closed forms, and brightness against matplotlib."""

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from photographs import as_floats, pictures

from mixmo.corruptions import SEVERITIES, SMALL, weather


def test_fog_keeps_the_maximum():
    images = pictures()
    mist = weather.fog(as_floats(images), (1.5, 1.75), torch.Generator().manual_seed(0))
    assert (mist.amax((1, 2, 3)) <= as_floats(images).amax((1, 2, 3)) + 1e-6).all()
    assert mist.mean() > as_floats(images).mean() * 0.4


def test_no_drop_leaves_the_image_alone():
    images = pictures()
    pixels = as_floats(images)
    dry = weather.spatter(pixels, (0.1, 0.01, 1, 0.7, 0.5, 0), torch.Generator())
    assert torch.equal(dry, pixels)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_is_that_of_hsv(severity):
    images = pictures()
    images[0, :4] = 0
    images[0, 4:8] = 77
    hsv = rgb_to_hsv(images.numpy() / 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + SMALL["brightness"][severity - 1][0], 0, 1)
    found = weather.brightness(as_floats(images), SMALL["brightness"][severity - 1], None)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), hsv_to_rgb(hsv), atol=1e-5)


def test_snow_falls_along_its_wind():
    images = pictures()
    snowy = weather.snow(as_floats(images), SMALL["snow"][4], torch.Generator().manual_seed(0))
    assert (snowy >= as_floats(images) - 1e-6).all()
