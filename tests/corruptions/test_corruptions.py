"""The 19 corruptions against the libraries that the published code calls, loops, and closed forms."""

import io
import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage

from mixmo.corruptions import KINDS, LARGE, SEVERITIES, SMALL, blur, corrupt, digital, filters, noise, relief, weather

COUNT = 4


def pictures(side=32, seed=0, width=None):
    """Smooth random pictures, uint8 (B, H, W, 3), with dark and bright parts."""
    rng = np.random.default_rng(seed)
    rough = rng.normal(size=(COUNT, side, width or side, 3))
    smooth = ndimage.gaussian_filter(rough, (0, side / 16, side / 16, 0))
    return torch.from_numpy((128 + 90 * smooth / smooth.std()).clip(0, 255).astype(np.uint8))


def as_floats(images):
    return (images.float() / 255).permute(0, 3, 1, 2)


def made(kind, severity, images, seed=0):
    return corrupt(images, kind, severity, torch.Generator().manual_seed(seed))


@pytest.fixture
def images():
    return pictures()


# All of them.


def test_every_kind_has_five_severities_in_both_tables():
    assert len(KINDS) == 19
    assert list(SMALL) == list(LARGE) == list(KINDS)
    assert all(len(table[kind]) == 5 for table in (SMALL, LARGE) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [8, 32, 112])
def test_shapes_types_and_seeds(kind, side):
    images = pictures(side, width=side + 4)
    for severity in (1, 5):
        found = made(kind, severity, images)
        assert found.shape == images.shape and found.dtype == torch.uint8
        assert torch.equal(found, made(kind, severity, images))
    grey = made(kind, 3, images[..., :1])
    assert grey.shape == (*images.shape[:3], 1)
    assert not torch.equal(found, images)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_severity_grows(kind, images):
    distances = [(made(kind, severity, images).float() - images).abs().mean().item() for severity in SEVERITIES]
    if kind in (
        "saturate",
        "spatter",
        "elastic_transform",
        "glass_blur",
        "snow",
        "frost",
    ):  # these change in kind as well
        assert min(distances) > 0
    else:
        assert distances == sorted(distances)


@pytest.mark.parametrize("kind", ["gaussian_noise", "glass_blur", "motion_blur", "fog", "spatter", "elastic_transform"])
def test_images_of_a_batch_are_corrupted_differently(kind):
    same = pictures()[:1].expand(COUNT, -1, -1, -1)
    found = made(kind, 4, same)
    assert not torch.equal(found[0], found[1])


def test_bad_input_is_named(images):
    with pytest.raises(ValueError, match="did you mean 'fog'"):
        made("fogg", 1, images)
    with pytest.raises(ValueError, match="severity 6 of fog"):
        made("fog", 6, images)
    with pytest.raises(ValueError, match=r"float32, are not \(B, H, W, 3 or 1\)"):
        made("fog", 1, images.float())


# Noise: moments.


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


# Linear filters: the libraries of the published code.


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1, 6])
@pytest.mark.parametrize("mode", ["nearest", "reflect"])
def test_gaussian_is_scipys(sigma, mode, images):
    found = filters.gaussian(as_floats(images), sigma, mode)
    expected = ndimage.gaussian_filter(as_floats(images).double().numpy(), (0, 0, sigma, sigma), mode=mode)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 1.04, 1.11, 1.25, 1.75, 2.25])
def test_zooming_is_scipys(factor, images):
    matrix = filters.zoom_matrix(32, factor)
    found = filters.separable(as_floats(images), matrix, matrix)
    for image, own in zip(images.numpy() / 255, found, strict=True):
        seen = math.ceil(32 / factor)
        top = (32 - seen) // 2
        grown = ndimage.zoom(image[top : top + seen, top : top + seen], (factor, factor, 1), order=1)
        trim = (len(grown) - 32) // 2
        np.testing.assert_allclose(own.permute(1, 2, 0), grown[trim : trim + 32, trim : trim + 32], atol=1e-6)


@pytest.mark.parametrize("table", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_is_opencvs(table, severity, images):
    radius, edge = table["defocus_blur"][severity - 1]
    reach, size = (8, 3) if radius <= 8 else (int(radius), 5)
    line = np.arange(-reach, reach + 1)
    disk = np.array(line[:, None] ** 2 + line**2 <= radius**2, dtype=np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), ksize=(size, size), sigmaX=edge)
    found = blur.defocus_blur(as_floats(images), (radius, edge), None)
    for image, own in zip(images.numpy() / 255, found, strict=True):
        np.testing.assert_allclose(own.permute(1, 2, 0), cv2.filter2D(image, -1, kernel), atol=2e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pillows(severity, images):
    found = made("pixelate", severity, images)
    for image, own in zip(images.numpy(), found.numpy(), strict=True):
        small = int(32 * SMALL["pixelate"][severity - 1][0])
        expected = Image.fromarray(image).resize((small, small), Image.BOX).resize((32, 32), Image.BOX)
        assert np.abs(own.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_pillows(severity, images):
    found = made("jpeg_compression", severity, images)
    for image, own in zip(images.numpy(), found.numpy(), strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(SMALL["jpeg_compression"][severity - 1][0]))
        assert np.abs(own.astype(int) - np.asarray(Image.open(file))).mean() < 1


# Loops.


@settings(max_examples=30, deadline=None)
@given(reach=st.integers(1, 4), height=st.integers(10, 16), width=st.integers(10, 16), seed=st.integers(0, 999))
def test_glass_is_the_published_loop(reach, height, width, seed):
    rng = np.random.default_rng(seed)
    down, right = rng.integers(-reach, reach, (2, 2, height, width))
    found = blur.shuffled(torch.from_numpy(down), torch.from_numpy(right), reach)
    for index in range(2):
        pixels = np.arange(height * width).reshape(height, width, 1)
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                to_h, to_w = h + down[index, h, w], w + right[index, h, w]
                pixels[h, w], pixels[to_h, to_w] = pixels[to_h, to_w], pixels[h, w]  # NumPy's views: a copy
        assert found[index].tolist() == pixels.ravel().tolist()


@pytest.mark.parametrize(("radius", "sigma", "angle"), [(6, 1, 30), (8, 2, -45), (14, 12, -100), (9, 2.5, 0)])
def test_motion_is_a_walk_along_a_line(radius, sigma, angle, images):
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


def test_fog_keeps_the_maximum(images):
    mist = weather.fog(as_floats(images), (1.5, 1.75), torch.Generator().manual_seed(0))
    assert (mist.amax((1, 2, 3)) <= as_floats(images).amax((1, 2, 3)) + 1e-6).all()
    assert mist.mean() > as_floats(images).mean() * 0.4


# Water, against OpenCV.


def drops(side=32, seed=0, threshold=0.69, sigma=1.0):
    rng = np.random.default_rng(seed)
    layer = ndimage.gaussian_filter(rng.normal(0.65, 0.3, (side, side)), sigma)
    return np.where(layer < threshold, 0, np.clip(layer, 0, 1) * 255).astype(np.uint8)


def batch(layer):
    return torch.from_numpy(layer.astype(np.float32))[None, None]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 9999), threshold=st.sampled_from([0.6, 0.69, 0.8]), sigma=st.sampled_from([0.5, 1, 3]))
def test_edges_are_opencvs(seed, threshold, sigma):
    layer = drops(seed=seed, threshold=threshold, sigma=sigma)
    found = relief.edges(batch(layer), 50, 150)[0, 0].numpy()
    np.testing.assert_array_equal(found, cv2.Canny(layer, 50, 150) > 0)


@given(share=st.floats(0, 0.2), seed=st.integers(0, 999))
def test_edge_distance_is_scipys(share, seed):
    edge = np.random.default_rng(seed).random((24, 40)) < share
    expected = np.minimum(ndimage.distance_transform_edt(~edge), 20) if edge.any() else np.full(edge.shape, 20.0)
    np.testing.assert_allclose(relief.edge_distance(torch.from_numpy(edge)[None, None])[0, 0], expected, rtol=1e-6)


@given(top=st.integers(0, 255), seed=st.integers(0, 999))
def test_equalising_is_opencvs(top, seed):
    layer = np.random.default_rng(seed).integers(0, top + 1, (16, 16), dtype=np.uint8)
    found = relief.equalised(batch(layer))[0, 0].numpy()
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


def test_no_drop_leaves_the_image_alone(images):
    pixels = as_floats(images)
    dry = weather.spatter(pixels, (0.1, 0.01, 1, 0.7, 0.5, 0), torch.Generator())
    assert torch.equal(dry, pixels)


# Colours and shapes.


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_and_saturation_are_those_of_hsv(severity, images):
    images[0, :4] = 0
    images[0, 4:8] = 77
    hsv = rgb_to_hsv(images.numpy() / 255)
    bright = hsv.copy()
    bright[..., 2] = np.clip(bright[..., 2] + SMALL["brightness"][severity - 1][0], 0, 1)
    found = weather.brightness(as_floats(images), SMALL["brightness"][severity - 1], None)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), hsv_to_rgb(bright), atol=1e-5)
    factor, shift = SMALL["saturate"][severity - 1]
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + shift, 0, 1)
    found = digital.saturate(as_floats(images), (factor, shift), None)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), hsv_to_rgb(hsv), atol=1e-5)


def test_contrast_keeps_the_mean(images):
    pixels = as_floats(images)
    found = digital.contrast(pixels, (0.3,), None)
    torch.testing.assert_close(found.mean((2, 3)), pixels.mean((2, 3)))
    torch.testing.assert_close(found.std((2, 3)), 0.3 * pixels.std((2, 3)))


def test_snow_falls_along_its_wind(images):
    snowy = weather.snow(as_floats(images), SMALL["snow"][4], torch.Generator().manual_seed(0))
    assert (snowy >= as_floats(images) - 1e-6).all()


def test_affine_maps_are_opencvs():
    generator = torch.Generator().manual_seed(3)
    places = digital._affine(COUNT, 32, 32, 2.5, generator)
    drawn = filters.uniform((COUNT, 3, 2), -2.5, 2.5, torch.Generator().manual_seed(3)).numpy()
    start = np.float32([[26, 26], [26, 6], [6, 6]])
    image = pictures(seed=5)[0].numpy().astype(np.float32) / 255
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].expand(COUNT, -1, -1, -1)
    found = digital._warped(pixels, places, mirror_pixels=True)
    for own, shift in zip(found, drawn, strict=True):
        matrix = cv2.getAffineTransform(start, start + shift.astype(np.float32))
        expected = cv2.warpAffine(image, matrix, (32, 32), borderMode=cv2.BORDER_REFLECT_101)
        assert np.abs(own.permute(1, 2, 0).numpy() - expected).max() < 0.05  # OpenCV rounds to 1/32 of a pixel
        assert np.abs(own.permute(1, 2, 0).numpy() - expected).mean() < 0.003


def test_warping_is_scipys(images):
    moved = filters.uniform((COUNT, 2, 32, 32), -4, 4, torch.Generator().manual_seed(0))
    places = digital._grid(32, 32, moved) + moved
    found = digital._warped(as_floats(images), places, mirror_pixels=False)
    for image, place, own in zip(as_floats(images).numpy(), places.numpy(), found.numpy(), strict=True):
        for channel in range(3):
            expected = ndimage.map_coordinates(image[channel], place, order=1, mode="reflect")
            np.testing.assert_allclose(own[channel], expected, atol=1e-4)
