"""Held-out images that are also in the training set are found and named."""

import time

import numpy as np
import pytest
from conftest import open_data, write_splits
from PIL import Image

from mixmo.config.data_settings import DataSettings
from mixmo.data.duplicates import find_duplicates, warn_of_duplicates
from mixmo.data.module import DataModule
from mixmo.data.sources import ArrayImages, Source


def test_files_are_compared_by_their_content(tmp_path, caplog):
    folder = write_splits(tmp_path / "images")
    for name in ("0", "1"):  # of one size and start, but others
        Image.fromarray(np.full((64, 64, 3), int(name), np.uint8)).save(folder / f"{name}.bmp")
        data = (folder / f"{name}.bmp").read_bytes()
        (folder / f"{name}.bmp").write_bytes(b"BM" + data[2:5000] + bytes([int(name)]))
    (folder / "0.bmp").rename(folder / "train/cat/big.bmp")
    (folder / "1.bmp").rename(folder / "test/cat/big.bmp")
    for copy, original in (("test/dog/x.png", "train/cat/003.png"), ("test/emu/y.png", "train/emu/000.png")):
        (folder / copy).write_bytes((folder / original).read_bytes())
    own = DataSettings(name=f"folder:{folder}", batch_size=8, validation=0.0, on_error="skip")
    data = open_data(own)
    warn_of_duplicates(data)
    warn_of_duplicates(data)
    (text,) = [text for text in caplog.messages if "byte for byte" in text]
    assert text.startswith("2 of 15 test images are training images as well, byte for byte (")
    assert "test/dog/x.png is " in text and "train/cat/003.png, " in text
    (folder / "test/dog/x.png").unlink()  # listed, and gone
    assert len(find_duplicates(data.source("test"), data.source("train"))) == 1


def test_copies_are_found_between_all_splits(caplog):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 6, 6), np.uint8)
    pixels[10], pixels[20], pixels[21] = pixels[0], pixels[1], pixels[11]
    source = Source(np.arange(30) % 2, ["a", "b"], ArrayImages(pixels, "image"))
    parts = [source.subset(np.arange(start, start + 10)) for start in (0, 10, 20)]
    given = dict(zip(("train", "validation", "test"), parts, strict=True))
    warn_of_duplicates(DataModule(DataSettings(name="given", channels=1, batch_size=4), 0, given=given))
    (text,) = [text for text in caplog.messages if "byte for byte" in text]
    for part in ("1 of 10 test images are training images as well", "1 of 10 test images are validation images as well",
                 "1 of 10 validation images are training images as well"):  # fmt: skip
        assert part in text


def test_arrays_are_compared_by_their_pixels(caplog):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 6, 6), np.uint8)
    pixels[25], pixels[29] = pixels[3], pixels[28]
    whole = Source(np.zeros(30, np.int64), ["a"], ArrayImages(pixels, "image"))
    train, test = whole.subset(np.arange(20)[::-1]), whole.subset(np.arange(20, 30))
    assert find_duplicates(test, train) == [(5, 16)]
    other = Source(np.zeros(15, np.int64), ["a"], ArrayImages(pixels[::2].reshape(15, 4, 9), "image"))
    assert find_duplicates(other, train) == []  # as many bytes in another shape are another image


@pytest.mark.slow
def test_many_images_in_memory_cost_little():
    pixels = np.random.default_rng(0).integers(0, 256, (60_000, 32, 32, 3), np.uint8)
    whole = Source(np.zeros(60_000, np.int64), ["a"], ArrayImages(pixels, "image"))
    start = time.perf_counter()
    assert find_duplicates(whole.subset(np.arange(50_000, 60_000)), whole.subset(np.arange(50_000))) == []
    assert time.perf_counter() - start < 10
