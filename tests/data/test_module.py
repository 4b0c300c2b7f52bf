"""Datasets: where they come from, what is refused, and what a batch is made of."""

import re
import tarfile

import numpy as np
import pytest
import torch
from conftest import data_of
from PIL import Image

from mixmo.config.settings import DataSettings
from mixmo.data import module
from mixmo.data.batches import Augmentation, BatchMaker
from mixmo.data.folders import FileImages
from mixmo.data.module import DataModule
from mixmo.data.sets import DistinctBatch, InMemoryImages, evaluation_loader, train_loader
from mixmo.errors import InputError
from mixmo.mixing import Mixer
from mixmo.pixel_mixing import PixelMixer

CPU = torch.device("cpu")


def settings(folder, **changes):
    return DataSettings(**({"name": f"folder:{folder}", "batch_size": 8, "validation": 0.0, "padding": 1} | changes))


def test_streamed_images_are_the_in_memory_ones(image_folder):
    in_memory = data_of(settings(image_folder, image_size=8))
    streamed = data_of(settings(image_folder, image_size=8, in_memory=False, workers=2))
    for kind in (train_loader,):
        pairs = zip(
            kind(in_memory.train, settings(image_folder), 0, CPU),
            kind(streamed.train, settings(image_folder, workers=2), 0, CPU),
            strict=True,
        )
        for a, b in pairs:
            assert torch.equal(a.images[a.chosen], b.images[b.chosen])
            assert torch.equal(a.labels[a.chosen], b.labels[b.chosen])


def test_evaluation_shows_every_image_once_in_order(image_folder):
    data = data_of(settings(image_folder, eval_batch_size=5))
    seen = torch.cat(
        [batch.chosen for batch in evaluation_loader(data.test, settings(image_folder, eval_batch_size=5), CPU)]
    )
    assert seen.tolist() == list(range(12))


@pytest.mark.parametrize(("repetition", "steps"), [(1, 3), (2, 6), (4, 12), (8, 24)])
def test_an_epoch_is_b_times_longer(image_folder, repetition, steps):
    own = settings(image_folder, batch_repetition=repetition)
    loader = train_loader(data_of(own).train, own, 0, CPU)
    batches = list(loader)
    assert len(batches) == len(loader) == steps
    assert sorted(torch.cat([batch.chosen for batch in batches]).tolist()) == list(range(24))


def test_published_epoch_lengths():
    """781 / 1562 / 3125 steps for b = 1 / 2 / 4 on CIFAR at batch 64: the incomplete last batch is left out."""
    images = InMemoryImages(torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8), torch.zeros(50_000, dtype=torch.long))
    for repetition, steps in {1: 781, 2: 1562, 4: 3125}.items():
        own = DataSettings(batch_size=64, batch_repetition=repetition)
        assert len(train_loader(images, own, 0, CPU)) == steps


def test_epochs_differ_and_seeds_repeat(image_folder):
    own = settings(image_folder)
    train = data_of(own).train

    def order(seed, epoch):
        loader = train_loader(train, own, seed, CPU)
        loader.batch_sampler.sampler.set_epoch(epoch)
        return torch.cat([batch.chosen for batch in loader]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)


def test_validation_is_stratified_seeded_and_disjoint():
    parts = {seed: data_of(DataSettings(name="digits", channels=1, validation=0.1), seed) for seed in (0, 1)}
    again = data_of(DataSettings(name="digits", channels=1, validation=0.1), 0)
    data = parts[0]
    assert len(data.train) + len(data.validation) == 1437
    assert len(data.validation) == 144
    assert torch.bincount(data.validation.labels).min() >= 14
    assert torch.equal(data.validation.images, again.validation.images)
    assert not torch.equal(data.validation.images, parts[1].validation.images)
    everything = data_of(DataSettings(name="digits", channels=1, validation=0.0)).train.images
    together = torch.cat([data.train.images, data.validation.images]).flatten(1)
    assert torch.equal(together.unique(dim=0), everything.flatten(1).unique(dim=0))


def few(count, seed=0, **changes):
    changes = {"name": "digits", "channels": 1, "validation": 0.1, "batch_size": 8} | changes
    return data_of(DataSettings(images_per_class=count, **changes), seed)


def rows(images):
    return {tuple(row) for row in images.flatten(1).tolist()}


def test_few_images_of_each_class_are_drawn_from_the_seed():
    """The same ones for every run with that seed, and those of a smaller count are among those of a larger."""
    data, larger, other = few(20), few(50), few(20, seed=1)
    assert torch.bincount(data.train.labels).tolist() == [20] * 10
    assert torch.equal(few(20).train.images, data.train.images)
    assert torch.equal(few(20, seed=1, split_seed=0).train.images, data.train.images)
    assert torch.equal(few(20, seed=1, split_seed=0).validation.images, data.validation.images)
    assert rows(data.train.images) < rows(larger.train.images)
    assert not torch.equal(data.train.images, other.train.images)
    assert torch.equal(data.validation.images, few(None).validation.images)


def test_unused_digits_join_the_test_set():
    data, everything = few(20), few(None)
    assert (len(data.train), len(data.validation), len(data.test)) == (200, 144, 1797 - 200 - 144)
    assert torch.equal(data.test.images[:360], everything.test.images)
    assert torch.equal(data.test.labels[:360], everything.test.labels)
    parts = [rows(each.images) for each in (data.train, data.validation, data.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) > 1780  # a few digits are alike
    assert (data.image(1000) == data.test.images[1000].numpy()).all()
    assert len(few(20, validation=0.0).test) == 1597
    assert data.fingerprint("test") != everything.fingerprint("test")
    assert data.fingerprint("test") != few(20, seed=1).fingerprint("test")


def test_unused_images_of_other_datasets_are_left_out(image_folder):
    data = data_of(settings(image_folder, images_per_class=3))
    assert torch.bincount(data.train.labels).tolist() == [3, 3, 3]
    assert len(data.test) == 12


def test_more_images_of_a_class_than_there_are_is_refused(image_folder):
    (image_folder / "train" / "emu" / "003.png").unlink()
    with pytest.raises(InputError, match=r"^data\.images_per_class is 8, but class emu has 7 images to train on"):
        data_of(settings(image_folder, images_per_class=8))


def test_odd_sizes_without_a_canvas_are_refused(image_folder):
    Image.new("RGB", (9, 8)).save(image_folder / "train" / "dog" / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png is 8×9, but the first one is 8×8; .*data\.image_size"):
        data_of(settings(image_folder))
    assert data_of(settings(image_folder, image_size=10)).train.images.shape == (25, 10, 10, 3)


def damage(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"not an image")


STREAMED = {"image_size": 8, "in_memory": False, "workers": 0}


@pytest.mark.parametrize("streamed", [{}, STREAMED], ids=["in_memory", "streamed"])
@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(image_folder, content, streamed):
    file = image_folder / "train" / "emu" / "003.png"
    file.write_bytes(file.read_bytes()[:60] if content is None else content)
    with pytest.raises(InputError, match=r"^image .*emu/003\.png cannot be read: [^/]*--data\.on_error skip\.$"):
        data_of(settings(image_folder, **streamed))
    own = settings(image_folder, batch_size=24, **STREAMED)
    with pytest.raises(InputError, match=r"emu/003\.png cannot be read"):
        next(iter(train_loader(data_of(own, check=False).train, own, 0, CPU)))


@pytest.mark.parametrize("streamed", [{}, STREAMED], ids=["in_memory", "streamed"])
@pytest.mark.parametrize("count", [2, 10, 13])
def test_all_unreadable_images_are_counted_and_ten_named(image_folder, streamed, count):
    names = [f"{kind}/{number:03}.png" for kind in ("cat", "emu") for number in range(7)][:count]
    damage(image_folder / "train", *names)
    with pytest.raises(InputError) as caught:
        data_of(settings(image_folder, **streamed))
    text = str(caught.value)
    assert f"{count} of 24 images cannot be read: " in text and "\n" not in text
    assert [name for name in names if name in text] == names[:10]
    assert ("and 3 more" in text) == (count == 13)


@pytest.mark.parametrize("streamed", [{}, STREAMED], ids=["in_memory", "streamed"])
def test_unreadable_images_are_skipped_where_that_is_asked_for(image_folder, caplog, streamed):
    whole = data_of(settings(image_folder, validation=0.25, image_size=8))
    own = settings(image_folder, validation=0.25, on_error="skip", **streamed)
    held_out = {bytes(image.numpy().tobytes()) for image in whole.validation.images}
    files = {np.asarray(Image.open(f)).tobytes(): f for f in (image_folder / "train").rglob("*.png")}
    first = next(f for pixels, f in files.items() if pixels not in held_out)
    second = next(f for pixels, f in files.items() if pixels in held_out)
    damage(image_folder, first, second, "test/dog/001.png")
    data = data_of(own)
    assert (len(data.train), len(data.validation), len(data.test)) == (17, 5, 11)
    for count, name in (("1 of 18", first.name), ("1 of 6", second.name), ("1 of 12", "test/dog/001.png")):
        assert re.search(rf"left out {count} images, which cannot be read: \S*{name} \(it is damaged, or", caplog.text)
    batches = list(evaluation_loader(data.test, own, CPU))
    assert torch.cat([batch.labels[batch.chosen] for batch in batches]).tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert len(list(train_loader(data.train, own, 0, CPU))) == 2
    seen = [data.image(index) for index in (4, 5)]  # numbered without the one left out
    expected = [np.asarray(Image.open(image_folder / "test" / "dog" / f"{i:03}.png")) for i in (0, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_skipping_does_not_empty_a_class(image_folder, caplog):
    damage(image_folder, *(f"test/cat/{i:03}.png" for i in range(4)))
    own = settings(image_folder, on_error="skip")
    assert len(data_of(own).test) == 8 and "no test image of cat can be read" in caplog.text
    damage(image_folder, *(f"train/cat/{i:03}.png" for i in range(8)))
    with pytest.raises(InputError, match="no training image of cat can be read"):
        data_of(own)


def test_test_images_of_another_size_are_refused(image_folder):
    for file in (image_folder / "test").rglob("*.png"):
        Image.new("RGB", (12, 12)).save(file)
    with pytest.raises(InputError, match="is 12×12, but the first one is 8×8"):
        _ = data_of(settings(image_folder)).test


def test_what_becomes_of_unreadable_images_is_one_of_two():
    with pytest.raises(InputError, match=r"unknown data\.on_error 'ignore'"):
        DataSettings(on_error="ignore")


def test_nothing_but_unreadable_images_is_refused(image_folder):
    for file in (image_folder / "train").rglob("*.png"):
        file.write_bytes(b"")
    for own in ({}, STREAMED):
        with pytest.raises(InputError, match="24 of 24 images cannot be read"):
            data_of(settings(image_folder, on_error="skip", **own))


def test_the_canvas_is_that_of_the_first_readable_image(image_folder):
    damage(image_folder / "train", "cat/000.png")
    assert data_of(settings(image_folder, on_error="skip")).train.images.shape == (23, 8, 8, 3)
    with pytest.raises(InputError, match=r"cat/000\.png"):
        data_of(settings(image_folder))


def test_one_image_too_large_for_memory_is_unreadable(image_folder, monkeypatch, caplog):
    def read(images, index):
        if index == 3:
            raise MemoryError
        return real(images, index)

    real = FileImages.read
    monkeypatch.setattr(FileImages, "read", read)
    assert len(data_of(settings(image_folder, on_error="skip")).train) == 23
    assert "cat/003.png (there is not enough memory for it)" in caplog.text


def test_images_that_do_not_fit_in_memory_are_to_be_streamed(image_folder, monkeypatch):
    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("mixmo.data.reading.np.empty", full)
    with pytest.raises(InputError, match=r"24 images of 8000×8000 do not fit in memory; stream them"):
        data_of(settings(image_folder, image_size=8000, in_memory=True))


def test_streamed_images_are_checked_once_and_said(image_folder, caplog):
    caplog.set_level("INFO", "mixmo")
    data_of(settings(image_folder, **STREAMED))
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
        monkeypatch.setattr("mixmo.data.archives.TarImages.read", None)
    own = settings(image_folder, **streamed)
    data = data_of(own)
    list(train_loader(data.train, own, 0, CPU))
    assert len(data.train) == 24
    monkeypatch.undo()
    with pytest.raises(InputError, match="cannot be read"):
        next(iter(evaluation_loader(data.test, own, CPU)))


def test_the_test_set_is_decoded_once(image_folder):
    data = data_of(settings(image_folder))
    assert data.test is data.test and len(data.test) == 12


def test_too_few_images_for_a_batch(image_folder):
    with pytest.raises(ValueError, match="24 training images, fewer than the 32 distinct images"):
        data_of(settings(image_folder, batch_size=32))
    with pytest.raises(ValueError, match=r"validation share of 0\.01 cannot be split off"):
        data_of(settings(image_folder, validation=0.01))


def test_random_crop_and_mirror_by_brute_force(generator):
    images = torch.randint(256, (5, 6, 7, 3), dtype=torch.uint8, generator=generator)
    own = DataSettings(padding=2, crop_size=4, flip=True, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    index = torch.arange(5).repeat(40)
    crops = Augmentation(own).random(images, index, generator)
    assert crops.shape == (200, 3, 4, 4)
    padded = np.pad(images.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for i, crop in zip(index.tolist(), crops, strict=True):
        pixels = crop.permute(1, 2, 0).numpy() * own.std + own.mean
        found = [
            (y, x, flip)
            for y in range(7) for x in range(8) for flip in (False, True)
            if np.allclose(padded[i, y : y + 4, x : x + 4][:, :: -1 if flip else 1] / 255, pixels, atol=1e-5)
        ]  # fmt: skip
        assert found
        seen.update(found)
    assert {y for y, _, _ in seen} == set(range(7)) and {x for _, x, _ in seen} == set(range(8))
    assert {flip for _, _, flip in seen} == {False, True}


def test_middle_crop():
    images = torch.arange(36, dtype=torch.uint8).view(1, 6, 6, 1)
    own = DataSettings(channels=1, crop_size=2, padding=0, mean=[0.0], std=[1.0])
    middle = Augmentation(own).center(images, torch.tensor([0]))
    torch.testing.assert_close(middle.flatten() * 255, torch.tensor([14.0, 15.0, 20.0, 21.0]))


@pytest.mark.parametrize(("height", "width", "crop", "padding"), [(8, 8, 40, 16), (8, 9, 11, 2), (6, 10, 8, 1)])
def test_the_middle_crop_of_a_smaller_image_has_a_black_border(height, width, crop, padding, generator):
    """As large as in training, and the image is in its middle."""
    images = torch.randint(1, 256, (2, height, width, 3), dtype=torch.uint8, generator=generator)
    own = DataSettings(crop_size=crop, padding=padding, mean=[0.0], std=[1.0])
    augment, index = Augmentation(own), torch.tensor([1, 0, 1])
    middle = augment.center(images, index)
    assert middle.shape == augment.random(images, index, generator).shape == (3, 3, crop, crop)
    down, across = max(0, crop - height), max(0, crop - width)
    border = ((0, 0), (down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0))
    padded = np.pad(images[index].numpy(), border)
    top, left = (padded.shape[1] - crop) // 2, (padded.shape[2] - crop) // 2
    expected = padded[:, top : top + crop, left : left + crop].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(middle.numpy() * 255, expected, atol=1e-3)


def labelled(count=12, side=6):
    """Images that say which they are: image i has the value 20 i everywhere."""
    values = (torch.arange(count) * 20).to(torch.uint8)
    return values[:, None, None, None].expand(count, side, side, 1).contiguous(), torch.arange(count) % 5


def maker(own, kind="cut", pixels=None, members=2, probability=1.0):
    return BatchMaker(own, Mixer(kind, members, probability=probability), pixels, 3.0, (4, 6, 6), 5)


@pytest.mark.parametrize("repeat", ["index", "pixels"])
def test_targets_belong_to_the_images(repeat, generator):
    images, labels = labelled()
    own = DataSettings(batch_size=16, batch_repetition=2, channels=1, padding=0, mean=[0.0], std=[1.0], repeat=repeat)
    batch = DistinctBatch(images, labels, torch.tensor([3, 1, 4, 11, 5, 9, 2, 6]))
    inputs, masks, targets, weights, _ = maker(own)(batch, generator)
    assert inputs.shape == (16, 2, 1, 6, 6) and masks.shape == (16, 2, 1, 6, 6)
    shown = (inputs[:, :, 0, 0, 0] * 255 / 20).round().long()
    assert torch.equal(targets, labels[shown])
    assert sorted(shown[:, 0].tolist()) == sorted([3, 1, 4, 11, 5, 9, 2, 6] * 2)
    assert weights.shape == (16, 2)


def test_shared_positions_are_those_of_one_image(generator):
    images, labels = labelled()
    batch = DistinctBatch(images, labels, torch.arange(8))
    own = DataSettings(batch_size=8, channels=1, padding=0, mean=[0.0], std=[1.0], input_repetition=0.5)
    for rho, least in ((None, 4), (0.25, 2)):
        mixed = maker(own, members=3)(batch, generator, 0.0, rho)
        shown = mixed.inputs[:, :, 0, 0, 0]
        assert torch.equal(mixed.shared, (shown == shown[:, :1]).all(1))
        assert mixed.shared[-least:].all() and least <= mixed.shared.sum() < 8


def test_copies_are_augmented_apart_or_together(generator):
    images = torch.randint(256, (2, 12, 12, 1), dtype=torch.uint8)
    batch = DistinctBatch(images, torch.tensor([0, 1]), torch.tensor([0, 1]))
    different = {}
    for repeat in ("index", "pixels"):
        own = DataSettings(batch_size=32, batch_repetition=16, channels=1, padding=4, repeat=repeat)
        different[repeat] = len(maker(own)(batch, generator).inputs.flatten(0, 1).flatten(1).unique(dim=0))
    assert different["pixels"] == 2
    assert different["index"] > 30


def test_pixel_partners_come_from_the_whole_set(generator):
    images, labels = labelled(12)
    own = DataSettings(batch_size=2, channels=1, padding=0, mean=[0.0], std=[1.0])
    batch = DistinctBatch(images, labels, torch.tensor([0, 1]))
    seen = set()
    for _ in range(60):
        inputs, _, targets, *_ = maker(own, pixels=PixelMixer("cutmix", probability=1.0))(batch, generator)
        seen |= set((inputs * 255 / 20).round().long().flatten().tolist())
        torch.testing.assert_close(targets.sum(2), torch.ones(2, 2))
    assert seen == set(range(12))


def test_soft_targets_are_what_is_visible(generator):
    images, labels = labelled(5)
    own = DataSettings(batch_size=4, channels=1, padding=0, mean=[0.0], std=[1.0])
    batch = DistinctBatch(images, labels, torch.tensor([0, 1, 2, 3]))
    for _ in range(10):
        inputs, masks, targets, *_ = maker(own, pixels=PixelMixer("cutmix", probability=1.0))(batch, generator)
        shown = torch.nn.functional.one_hot((inputs[:, :, 0] * 255 / 20).round().long(), 5).float()
        visible = (shown * masks[:, :, 0, :, :, None]).sum((2, 3)) / masks.sum((2, 3, 4))[..., None]
        filled = masks.sum((2, 3, 4)) > 0
        torch.testing.assert_close(targets[filled], visible[filled], atol=1e-5, rtol=0)


def test_a_batch_is_a_function_of_its_generator(generator):
    images, labels = labelled()
    own = DataSettings(batch_size=8, channels=1)
    batch = DistinctBatch(images, labels, torch.arange(8))
    one, other = (
        maker(own, pixels=PixelMixer("mixup"))(batch, torch.Generator().manual_seed(5), 0.3) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_another_dataset_is_listed_once(image_folder, monkeypatch):
    honest, opened = module.open_source, []

    def counted(name, *rest):
        opened.append(name)
        return honest(name, *rest)

    monkeypatch.setattr(module, "open_source", counted)
    data = DataModule(DataSettings(name="digits", channels=1), 0)
    other = f"folder:{image_folder}"
    assert data.fingerprint("test", other) == data.fingerprint("test", other)
    assert len(data.other(other)[0])
    assert opened.count(other) == 1
