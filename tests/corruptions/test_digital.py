"""Digital corruptions against Pillow, OpenCV, SciPy and matplotlib."""

import io

import cv2
import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from photographs import COUNT, as_floats, corrupted, pictures
from PIL import Image
from scipy import ndimage

from mixmo.corruptions import SEVERITIES, SMALL, digital, filters


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pillows(severity):
    images = pictures()
    found = corrupted("pixelate", severity, images)
    for image, own in zip(images.numpy(), found.numpy(), strict=True):
        small = int(32 * SMALL["pixelate"][severity - 1][0])
        expected = Image.fromarray(image).resize((small, small), Image.BOX).resize((32, 32), Image.BOX)
        assert np.abs(own.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_pillows(severity):
    images = pictures()
    found = corrupted("jpeg_compression", severity, images)
    for image, own in zip(images.numpy(), found.numpy(), strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(SMALL["jpeg_compression"][severity - 1][0]))
        assert np.abs(own.astype(int) - np.asarray(Image.open(file))).mean() < 1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturation_is_that_of_hsv(severity):
    images = pictures()
    images[0, :4] = 0
    images[0, 4:8] = 77
    hsv = rgb_to_hsv(images.numpy() / 255)
    factor, shift = SMALL["saturate"][severity - 1]
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + shift, 0, 1)
    found = digital.saturate(as_floats(images), (factor, shift), None)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), hsv_to_rgb(hsv), atol=1e-5)


def test_contrast_keeps_the_mean():
    images = pictures()
    pixels = as_floats(images)
    found = digital.contrast(pixels, (0.3,), None)
    torch.testing.assert_close(found.mean((2, 3)), pixels.mean((2, 3)))
    torch.testing.assert_close(found.std((2, 3)), 0.3 * pixels.std((2, 3)))


def test_affine_maps_are_opencvs():
    generator = torch.Generator().manual_seed(3)
    places = digital._affine_positions(COUNT, 32, 32, 2.5, generator)
    drawn = filters.uniform((COUNT, 3, 2), -2.5, 2.5, torch.Generator().manual_seed(3)).numpy()
    start = np.float32([[26, 26], [26, 6], [6, 6]])
    image = pictures(seed=5)[0].numpy().astype(np.float32) / 255
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].expand(COUNT, -1, -1, -1)
    found = digital._warp(pixels, places, mirror_pixels=True)
    for own, shift in zip(found, drawn, strict=True):
        matrix = cv2.getAffineTransform(start, start + shift.astype(np.float32))
        expected = cv2.warpAffine(image, matrix, (32, 32), borderMode=cv2.BORDER_REFLECT_101)
        assert np.abs(own.permute(1, 2, 0).numpy() - expected).max() < 0.05  # OpenCV rounds to 1/32 of a pixel
        assert np.abs(own.permute(1, 2, 0).numpy() - expected).mean() < 0.003


def test_warping_is_scipys():
    images = pictures()
    moved = filters.uniform((COUNT, 2, 32, 32), -4, 4, torch.Generator().manual_seed(0))
    places = digital._grid(32, 32, moved) + moved
    found = digital._warp(as_floats(images), places, mirror_pixels=False)
    for image, place, own in zip(as_floats(images).numpy(), places.numpy(), found.numpy(), strict=True):
        for channel in range(3):
            expected = ndimage.map_coordinates(image[channel], place, order=1, mode="reflect")
            np.testing.assert_allclose(own[channel], expected, atol=1e-4)
