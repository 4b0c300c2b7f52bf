"""The relief of water drops against OpenCV and SciPy."""

import cv2
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mixmo.corruptions import relief


def drops(side=32, seed=0, threshold=0.69, sigma=1.0):
    rng = np.random.default_rng(seed)
    layer = ndimage.gaussian_filter(rng.normal(0.65, 0.3, (side, side)), sigma)
    return np.where(layer < threshold, 0, np.clip(layer, 0, 1) * 255).astype(np.uint8)


def batch(layer):
    return torch.from_numpy(layer.astype(np.float32))[None, None]


@settings(max_examples=50)
@given(seed=st.integers(0, 9999), threshold=st.sampled_from([0.6, 0.69, 0.8]), sigma=st.sampled_from([0.5, 1, 3]))
def test_edges_are_opencvs(seed, threshold, sigma):
    layer = drops(seed=seed, threshold=threshold, sigma=sigma)
    found = relief.canny_edges(batch(layer), 50, 150)[0, 0].numpy()
    np.testing.assert_array_equal(found, cv2.Canny(layer, 50, 150) > 0)


@given(share=st.floats(0, 0.2), seed=st.integers(0, 999))
def test_edge_distance_is_scipys(share, seed):
    edge = np.random.default_rng(seed).random((24, 40)) < share
    expected = np.minimum(ndimage.distance_transform_edt(~edge), 20) if edge.any() else np.full(edge.shape, 20.0)
    np.testing.assert_allclose(relief.edge_distance(torch.from_numpy(edge)[None, None])[0, 0], expected, rtol=1e-6)


@given(top=st.integers(0, 255), seed=st.integers(0, 999))
def test_equalising_is_opencvs(top, seed):
    layer = np.random.default_rng(seed).integers(0, top + 1, (16, 16), dtype=np.uint8)
    found = relief.equalise(batch(layer))[0, 0].numpy()
    assert np.abs(found - cv2.equalizeHist(layer)).max() <= 1  # halves


def test_water_is_opencvs():
    for seed in range(5):
        layer = drops(seed=seed)
        distance = cv2.distanceTransform(255 - cv2.Canny(layer, 50, 150), cv2.DIST_L2, 5)
        distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
        light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
        expected = cv2.blur(cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, light), (3, 3))
        found = relief.water_relief(batch(layer))[0, 0].numpy()
        assert np.abs(found - expected).mean() < 4  # of 255: OpenCV's distances are approximate
