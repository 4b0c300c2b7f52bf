"""Blurs against OpenCV and the published loop."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import as_floats, pictures

from mixmo.corruptions import LARGE, SEVERITIES, SMALL, blur


@pytest.mark.parametrize("table", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_is_opencvs(table, severity):
    images = pictures()
    radius, edge = table["defocus_blur"][severity - 1]
    reach, size = (8, 3) if radius <= 8 else (int(radius), 5)
    line = np.arange(-reach, reach + 1)
    disk = np.array(line[:, None] ** 2 + line**2 <= radius**2, dtype=np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), ksize=(size, size), sigmaX=edge)
    found = blur.defocus_blur(as_floats(images), (radius, edge), None)
    for image, own in zip(images.numpy() / 255, found, strict=True):
        np.testing.assert_allclose(own.permute(1, 2, 0), cv2.filter2D(image, -1, kernel), atol=2e-6)


@settings(max_examples=30)
@given(reach=st.integers(1, 4), height=st.integers(10, 16), width=st.integers(10, 16), seed=st.integers(0, 999))
def test_glass_is_the_published_loop(reach, height, width, seed):
    rng = np.random.default_rng(seed)
    down, right = rng.integers(-reach, reach, (2, 2, height, width))
    found = blur.trace_sources(torch.from_numpy(down), torch.from_numpy(right), reach)
    for index in range(2):
        pixels = np.arange(height * width).reshape(height, width, 1)
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                to_h, to_w = h + down[index, h, w], w + right[index, h, w]
                pixels[h, w], pixels[to_h, to_w] = pixels[to_h, to_w], pixels[h, w]  # NumPy's views: a copy
        assert found[index].tolist() == pixels.ravel().tolist()
