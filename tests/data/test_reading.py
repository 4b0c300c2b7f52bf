"""Unreadable images: named before training, or skipped and counted; the result of the check is cached."""

import re
import tarfile

import numpy as np
import pytest
import torch
from conftest import open_data
from PIL import Image

from mixmo.config.data_settings import DataSettings
from mixmo.data.folders import FileImages
from mixmo.data.image_sets import build_evaluation_loader, build_train_loader
from mixmo.errors import InputError

CPU = torch.device("cpu")


def settings(folder, **changes):
    return DataSettings(**({"name": f"folder:{folder}", "batch_size": 8, "validation": 0.0, "padding": 1} | changes))


def damage(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"not an image")


STREAMED = {"image_size": 8, "in_memory": False, "workers": 0}


def test_what_was_found_readable_is_not_read_again(image_folder, cache, caplog, monkeypatch):
    caplog.set_level("INFO", "mixmo")
    first = open_data(settings(image_folder, **STREAMED))
    with monkeypatch.context() as patch:
        patch.setattr("mixmo.data.reading._read", None)
        again = open_data(settings(image_folder, **STREAMED))
    assert len(again.train) == len(first.train) == 24 and len(caplog.records) == 1
    (image_folder / "train/cat/003.png").write_bytes(b"damaged")
    for _ in range(2):  # what cannot be read is never taken for granted
        with pytest.raises(InputError, match=r"image .*cat/003\.png cannot be read"):
            open_data(settings(image_folder, **STREAMED))
    (image_folder / "train/cat/003.png").write_bytes((image_folder / "train/cat/002.png").read_bytes())
    for _ in range(2):
        assert len(open_data(settings(image_folder, **STREAMED)).train) == 24
        for kept in (cache / "mixmo/readable").iterdir():
            kept.write_text("damaged")
    checks = [record for record in caplog.records if "checking once" in record.getMessage()]
    assert len(checks) == 5


@pytest.mark.parametrize("streamed", [{}, STREAMED], ids=["in_memory", "streamed"])
@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(image_folder, content, streamed):
    file = image_folder / "train" / "emu" / "003.png"
    file.write_bytes(file.read_bytes()[:60] if content is None else content)
    with pytest.raises(InputError, match=r"^image .*emu/003\.png cannot be read: [^/]*data\.on_error: skip\.$"):
        open_data(settings(image_folder, **streamed))
    own = settings(image_folder, batch_size=24, **STREAMED)
    with pytest.raises(InputError, match=r"emu/003\.png cannot be read"):
        next(iter(build_train_loader(open_data(own, check=False).train, own, 0, CPU)))


@pytest.mark.parametrize("streamed", [{}, STREAMED], ids=["in_memory", "streamed"])
@pytest.mark.parametrize("count", [2, 10, 13])
def test_all_unreadable_images_are_counted_and_ten_named(image_folder, streamed, count):
    names = [f"{kind}/{number:03}.png" for kind in ("cat", "emu") for number in range(7)][:count]
    damage(image_folder / "train", *names)
    with pytest.raises(InputError) as caught:
        open_data(settings(image_folder, **streamed))
    text = str(caught.value)
    assert f"{count} of 24 images cannot be read: " in text and "\n" not in text
    assert [name for name in names if name in text] == names[:10]
    assert ("and 3 more" in text) == (count == 13)


@pytest.mark.parametrize("streamed", [{}, STREAMED], ids=["in_memory", "streamed"])
def test_unreadable_images_are_skipped_where_that_is_asked_for(image_folder, caplog, streamed):
    whole = open_data(settings(image_folder, validation=0.25, image_size=8))
    own = settings(image_folder, validation=0.25, on_error="skip", **streamed)
    held_out = {bytes(image.numpy().tobytes()) for image in whole.validation.images}
    files = {np.asarray(Image.open(f)).tobytes(): f for f in (image_folder / "train").rglob("*.png")}
    first = next(f for pixels, f in files.items() if pixels not in held_out)
    second = next(f for pixels, f in files.items() if pixels in held_out)
    damage(image_folder, first, second, "test/dog/001.png")
    data = open_data(own)
    assert (len(data.train), len(data.validation), len(data.test)) == (17, 5, 11)
    for count, name in (("1 of 18", first.name), ("1 of 6", second.name), ("1 of 12", "test/dog/001.png")):
        assert re.search(rf"left out {count} images, which cannot be read: \S*{name} \(it is damaged, or", caplog.text)
    batches = list(build_evaluation_loader(data.test, own, CPU))
    assert torch.cat([batch.labels[batch.chosen] for batch in batches]).tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert len(list(build_train_loader(data.train, own, 0, CPU))) == 2
    seen = [data.image(index) for index in (4, 5)]  # numbered without the one left out
    expected = [np.asarray(Image.open(image_folder / "test" / "dog" / f"{i:03}.png")) for i in (0, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_skipping_does_not_empty_a_class(image_folder, caplog):
    damage(image_folder, *(f"test/cat/{i:03}.png" for i in range(4)))
    own = settings(image_folder, on_error="skip")
    assert len(open_data(own).test) == 8 and "no test image of cat can be read" in caplog.text
    damage(image_folder, *(f"train/cat/{i:03}.png" for i in range(8)))
    with pytest.raises(InputError, match="no training image of cat exists or can be read"):
        open_data(own)


def test_test_images_of_another_size_are_refused(image_folder):
    for file in (image_folder / "test").rglob("*.png"):
        Image.new("RGB", (12, 12)).save(file)
    with pytest.raises(InputError, match="is 12×12, but the first one is 8×8"):
        _ = open_data(settings(image_folder)).test


def test_what_becomes_of_unreadable_images_is_one_of_two():
    with pytest.raises(InputError, match=r"unknown data\.on_error 'ignore'"):
        DataSettings(on_error="ignore")


def test_nothing_but_unreadable_images_is_refused(image_folder):
    for file in (image_folder / "train").rglob("*.png"):
        file.write_bytes(b"")
    for own in ({}, STREAMED):
        with pytest.raises(InputError, match="24 of 24 images cannot be read"):
            open_data(settings(image_folder, on_error="skip", **own))


def test_the_canvas_is_that_of_the_first_readable_image(image_folder):
    damage(image_folder / "train", "cat/000.png")
    assert open_data(settings(image_folder, on_error="skip")).train.images.shape == (23, 8, 8, 3)
    with pytest.raises(InputError, match=r"cat/000\.png"):
        open_data(settings(image_folder))


def test_one_image_too_large_for_memory_is_unreadable(image_folder, monkeypatch, caplog):
    def read(images, index):
        if index == 3:
            raise MemoryError
        return real(images, index)

    real = FileImages.read
    monkeypatch.setattr(FileImages, "read", read)
    assert len(open_data(settings(image_folder, on_error="skip")).train) == 23
    assert "cat/003.png (there is not enough memory for it)" in caplog.text


def test_images_that_do_not_fit_in_memory_are_to_be_streamed(image_folder, monkeypatch):
    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("mixmo.data.reading.np.empty", full)
    with pytest.raises(InputError, match=r"24 images of 8000×8000 do not fit in memory; stream them"):
        open_data(settings(image_folder, image_size=8000, in_memory=True))


def test_streamed_images_are_checked_once_and_said(image_folder, caplog):
    caplog.set_level("INFO", "mixmo")
    open_data(settings(image_folder, **STREAMED))
    assert [record.getMessage() for record in caplog.records] == ["checking once that all 24 images can be read"]


@pytest.mark.parametrize("streamed", [{}, STREAMED], ids=["in_memory", "streamed"])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_training_decodes_no_test_image(image_folder, monkeypatch, streamed, kind):
    for file in (image_folder / "test").rglob("*.png"):
        file.write_bytes(b"not an image")
    if kind == "tar":
        with tarfile.open(image_folder / "test.tar.gz", "w:gz") as tar:
            tar.add(image_folder / "test", "test")
        (image_folder / "test").rename(image_folder / "unpacked")
    own = settings(image_folder, **streamed)
    data = open_data(own)
    list(build_train_loader(data.train, own, 0, CPU))
    assert len(data.train) == 24
    monkeypatch.undo()
    with pytest.raises(InputError, match="cannot be read"):
        next(iter(build_evaluation_loader(data.test, own, CPU)))
