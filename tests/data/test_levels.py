"""Size limits, and warnings about 16-bit values that lose levels, for every kind of source."""

import io

import numpy as np
import pytest
import torch
from conftest import open_source
from PIL import Image
from torch.utils.data import TensorDataset

from mixmo.config.data_settings import DataSettings
from mixmo.data import levels, messages
from mixmo.data.decoding import image_pixels, to_size
from mixmo.data.given import infer_channels, open_given
from mixmo.data.sources import decode
from mixmo.deploy.images import InputFormat, decode_batches
from mixmo.errors import InputError

RNG = np.random.default_rng(0)
TWELVE = RNG.integers(1000, 4096, (4, 8, 8)).astype(np.uint16)


@pytest.fixture
def said(monkeypatch, caplog):
    """Resets the messages that are logged once per process."""
    monkeypatch.setattr(messages, "_LOGGED", set())
    return caplog


class Arrays(torch.utils.data.Dataset):
    def __len__(self):
        return len(TWELVE)

    def __getitem__(self, index):
        return TWELVE[index], index % 2


def given_in_every_way(folder):
    """Sources of the same values, and the names of their images."""
    for number, values in enumerate(TWELVE):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(values).save(folder / "ab"[number % 2] / f"{number}.png")
    rows = [f"{'ab'[number % 2]}/{number}.png,{'ab'[number % 2]}" for number in range(4)]
    (folder / "t.csv").write_text("\n".join(["path,label", *rows]))
    labels = np.arange(4) % 2
    yield open_source(f"folder:{folder}", "all"), "0.png"
    yield open_source(f"csv:{folder / 't.csv'}", "all"), "0.png"
    yield open_given((TWELVE, labels), "train"), "train image 0"
    yield open_given((torch.from_numpy(TWELVE), labels), "train"), "train image 0"
    yield open_given(TensorDataset(torch.from_numpy(TWELVE)[:, None], torch.from_numpy(labels)), "train"), "train image"
    yield open_given(Arrays(), "train"), "train image 0"


def test_every_way_in_is_warned_and_takes_a_window(tmp_path, said):
    for source, name in given_in_every_way(tmp_path):
        messages._LOGGED.clear()
        said.clear()
        assert decode(source, 0, None, 1).max() <= 16
        (text,) = said.messages
        assert name in text and f"from {TWELVE[0].min()} to {TWELVE[0].max()}" in text and "data.window" in text
        seen = decode(source, 0, None, 1, window=(1000, 4095))
        assert np.abs(seen[..., 0] - (TWELVE[0] - 1000.0) / 3095 * 255).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("given", [TWELVE[0], torch.from_numpy(TWELVE[0]), Image.fromarray(TWELVE[0])])
def test_predictions_are_warned_and_take_the_window(given, said):
    form = InputFormat((8, 8), 1, "bicubic")
    (plain,) = decode_batches([given], [form], 1, 0)
    (text,) = said.messages
    assert text.startswith("image 0 has values from") and plain.pixels[form].max() <= 16
    windowed = form._replace(window=(1000.0, 4095.0))
    (batch,) = decode_batches([given], [windowed], 1, 0)
    exact = (TWELVE[0] - 1000.0) / 3095 * 255
    assert np.abs(batch.pixels[windowed][0, ..., 0].numpy() - exact).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("window", "count"), [((10000, 20000), 1), ((0, 1), 1), ((0, 65535), 13)])
def test_a_window_that_leaves_few_grey_levels_is_warned_of(window, count, said):
    decode(open_given((TWELVE, [0, 1, 0, 1]), "train"), 0, None, 1, window=window)
    (text,) = said.messages
    assert f"data.window {list(window)} leaves {count} of 256 grey levels" in text or count == 13, text
    messages._LOGGED.clear()
    said.clear()
    blank = np.full((2, 8, 8), 1234, np.uint16)
    decode(open_given((blank, [0, 1]), "train"), 0, None, 1, window=window)
    assert not said.messages


def test_floats_are_in_the_units_of_a_window():
    form = InputFormat((8, 8), 1, "bicubic")
    (batch,) = decode_batches([TWELVE[0] / 4095], [form], 1, 0)
    assert np.abs(batch.pixels[form][0, ..., 0].numpy() - TWELVE[0] / 4095 * 255).max() <= 0.51
    (batch,) = decode_batches([TWELVE[0].astype(float)], [form], 1, 0)
    assert "trained with data.window" in batch.errors[0]
    form = form._replace(window=(1000.0, 4095.0))
    (batch,) = decode_batches([TWELVE[0].astype(np.float32)], [form], 1, 0)
    assert np.abs(batch.pixels[form][0, ..., 0].numpy() - (TWELVE[0] - 1000.0) / 3095 * 255).max() <= 0.51


@pytest.mark.parametrize(
    ("images", "channels"),
    [
        (np.zeros((2, 8, 8, 13), np.uint8), 13),
        (np.zeros((2, 13, 8, 8), np.uint16), 13),
        (torch.zeros(2, 13, 8, 8, dtype=torch.uint8), 13),
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint16), 2),
        (np.zeros((2, 8, 8, 4), np.uint8), 3),  # opacity, unless data.channels is 4
    ],
)
def test_bands_of_arrays_are_counted(images, channels):
    source = open_given((images, [0, 1]), "train")
    assert infer_channels(source) == channels
    assert decode(source, 1, None, channels).shape == (8, 8, channels)


def test_bands_that_could_be_a_side_are_asked_for():
    for shape in ((2, 12, 20, 13), (2, 13, 40, 30)):
        source = open_given((np.zeros(shape, np.uint8), [0, 1]), "train")
        with pytest.raises(InputError, match=r"train image 0 has shape .*; set channels"):
            infer_channels(source)
        assert decode(source, 1, None, 13).shape[2] == 13


def test_bands_are_those_of_the_array():
    values = RNG.integers(0, 256, (2, 6, 5, 13), dtype=np.uint8)
    for images in (values, values.transpose(0, 3, 1, 2), torch.from_numpy(values).permute(0, 3, 1, 2)):
        assert np.array_equal(decode(open_given((images, [0, 1]), "train"), 1, None, 13), values[1])


def test_floats_with_their_bands_last_are_refused():
    for shape in ((2, 32, 32, 3), (2, 32, 32, 13)):
        with pytest.raises(InputError, match=r"floating-point images are finite and \(C, H, W\)"):
            open_given((np.zeros(shape, np.float32), [0, 1]), "train")
    assert infer_channels(open_given((np.zeros((2, 13, 32, 32), np.float32), [0, 1]), "train")) == 13


@pytest.mark.parametrize("channels", [2, 5, 13])
def test_bands_are_scaled_each_as_it_would_be_alone(channels):
    pixels = RNG.integers(0, 256, (20, 24, channels), dtype=np.uint8)
    scaled = to_size(pixels, (10, 11))
    alone = [to_size(np.repeat(pixels[..., [band]], 3, 2), (10, 11))[..., 0] for band in range(channels)]
    assert np.array_equal(scaled, np.stack(alone, 2)) and scaled.flags.c_contiguous  # as batches take it


@pytest.mark.parametrize("channels", [0, 513, 2.0])
def test_channels_that_are_none_are_refused(channels):
    with pytest.raises(InputError, match=r"data\.channels is"):
        DataSettings(channels=channels)


def jpeg(width, height, **options):
    picture = Image.fromarray(np.kron(RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8), np.ones((40, 40, 1), np.uint8)))
    picture.resize((width, height)).save(file := io.BytesIO(), "JPEG", quality=95, **options)
    return file.getvalue()


def test_a_jpeg_above_the_limit_is_decoded_smaller_and_looks_the_same(monkeypatch):
    content = jpeg(640, 480)
    whole = image_pixels(content, 3, size=(32, 48))
    assert whole.shape == (480, 640, 3)
    monkeypatch.setattr(levels, "MAX_PIXELS", 640 * 480 - 1)
    reduced = image_pixels(content, 3, size=(32, 48))
    assert reduced.shape == (120, 160, 3)  # a fourth: an eighth is less than twice 32×48
    shown = np.asarray(Image.fromarray(whole).reduce(4)).astype(int)
    assert np.abs(reduced - shown).mean() < 1
    turned = jpeg(640, 480, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")
    assert image_pixels(turned, 3, size=(32, 48)).shape == (160, 120, 3)
    for refused, size in ((content, None), (content, (400, 400)), (jpeg(640, 480, progressive=True), (32, 48))):
        with pytest.raises(InputError, match=r"MIXMO_MAX_MEGAPIXELS"):
            image_pixels(refused, 3, size=size)


def test_a_jpeg_above_pillows_own_limit(monkeypatch):
    content = jpeg(640, 480)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(levels, "MAX_PIXELS", 640 * 480 // 16)
    assert image_pixels(content, 3, size=(8, 8)).shape == (60, 80, 3)


def test_the_limit_is_that_of_the_environment(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setenv("MIXMO_MAX_MEGAPIXELS", "0.01")
    image = Image.new("L", (100, 100))
    image.save(file := io.BytesIO(), "PNG")
    assert image_pixels(file.getvalue(), 1).shape == (100, 100, 1) and Image.MAX_IMAGE_PIXELS == 10_000
    monkeypatch.setenv("MIXMO_MAX_MEGAPIXELS", "0.0099")
    with pytest.raises(InputError, match="more than 0 megapixels"):
        image_pixels(file.getvalue(), 1)
    for wrong in ("many", "0", "nan", "inf", ""):
        monkeypatch.setenv("MIXMO_MAX_MEGAPIXELS", wrong)
        with pytest.raises(InputError, match=f"MIXMO_MAX_MEGAPIXELS is '{wrong}'; it is a number of megapixels"):
            image_pixels(file.getvalue(), 1)
