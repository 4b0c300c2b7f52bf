"""Datasets: where they come from, what is refused, and what a batch is made of."""

import io
import tarfile
import urllib.error

import numpy as np
import pytest
import torch
from conftest import write_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mixmo.batches import Augmentation, BatchMaker
from mixmo.data import DistinctBatch, ResidentImages, evaluation_loader, load_images, train_loader
from mixmo.mixing import Mixer
from mixmo.pixels import PixelMixer
from mixmo.settings import DataSettings
from mixmo.sources import Source, decode, open_source

CPU = torch.device("cpu")


def settings(folder, **changes):
    return DataSettings(**({"name": f"folder:{folder}", "batch_size": 8, "validation": 0.0, "padding": 1} | changes))


def test_folders_are_read_in_the_order_of_sorted_names(image_folder):
    data = load_images(settings(image_folder))
    assert data.classes == ["cat", "dog", "emu"]
    assert data.size == (8, 8)
    assert (len(data.train), len(data.test), data.validation) == (24, 12, None)
    first = np.asarray(Image.open(image_folder / "train" / "dog" / "000.png"))
    assert np.array_equal(data.train.images[8].numpy(), first)
    assert data.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8


@pytest.mark.parametrize("shards", [1, 3])
def test_tar_files_hold_what_the_folder_holds(image_folder, tmp_path, shards):
    packed = tmp_path / "packed"
    packed.mkdir()
    files = sorted((image_folder / "train").rglob("*.png"))
    for shard in range(shards):
        name = "train.tar.gz" if shards == 1 else f"train-{shard}.tar.gz"
        with tarfile.open(packed / name, "w:gz") as tar:
            for file in files[shard::shards]:
                tar.add(file, f"./{file.parent.name}/{file.name}")
    with tarfile.open(packed / "test.tar", "w") as tar:
        tar.add(image_folder / "test", ".")
    one, other = load_images(settings(image_folder)), load_images(settings(packed))
    assert one.classes == other.classes
    assert torch.equal(one.train.labels, other.train.labels)
    if shards == 1:
        assert torch.equal(one.train.images, other.train.images)
    assert torch.equal(one.test.images, other.test.images)


def test_streamed_images_are_the_resident_ones(image_folder):
    resident = load_images(settings(image_folder, image_size=8))
    streamed = load_images(settings(image_folder, image_size=8, resident=False, workers=2))
    for kind in (train_loader,):
        pairs = zip(
            kind(resident.train, settings(image_folder), 0, CPU),
            kind(streamed.train, settings(image_folder, workers=2), 0, CPU),
            strict=True,
        )
        for a, b in pairs:
            assert torch.equal(a.images[a.chosen], b.images[b.chosen])
            assert torch.equal(a.labels[a.chosen], b.labels[b.chosen])


def test_evaluation_shows_every_image_once_in_order(image_folder):
    data = load_images(settings(image_folder, eval_batch_size=5))
    seen = torch.cat(
        [batch.chosen for batch in evaluation_loader(data.test, settings(image_folder, eval_batch_size=5), CPU)]
    )
    assert seen.tolist() == list(range(12))


@pytest.mark.parametrize(("repetition", "steps"), [(1, 3), (2, 6), (4, 12), (8, 24)])
def test_an_epoch_is_b_times_longer(image_folder, repetition, steps):
    own = settings(image_folder, batch_repetition=repetition)
    loader = train_loader(load_images(own).train, own, 0, CPU)
    batches = list(loader)
    assert len(batches) == len(loader) == steps
    assert sorted(torch.cat([batch.chosen for batch in batches]).tolist()) == list(range(24))


def test_published_epoch_lengths():
    """781 / 1562 / 3125 steps for b = 1 / 2 / 4 on CIFAR at batch 64: the incomplete last batch is left out."""
    images = ResidentImages(torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8), torch.zeros(50_000, dtype=torch.long))
    for repetition, steps in {1: 781, 2: 1562, 4: 3125}.items():
        own = DataSettings(batch_size=64, batch_repetition=repetition)
        assert len(train_loader(images, own, 0, CPU)) == steps


def test_epochs_differ_and_seeds_repeat(image_folder):
    own = settings(image_folder)
    train = load_images(own).train

    def order(seed, epoch):
        loader = train_loader(train, own, seed, CPU)
        loader.batch_sampler.sampler.set_epoch(epoch)
        return torch.cat([batch.chosen for batch in loader]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)


def test_validation_is_stratified_seeded_and_disjoint():
    parts = {seed: load_images(DataSettings(name="digits", channels=1, validation=0.1), seed) for seed in (0, 1)}
    again = load_images(DataSettings(name="digits", channels=1, validation=0.1), 0)
    data = parts[0]
    assert len(data.train) + len(data.validation) == 1437
    assert len(data.validation) == 144
    assert torch.bincount(data.validation.labels).min() >= 14
    assert torch.equal(data.validation.images, again.validation.images)
    assert not torch.equal(data.validation.images, parts[1].validation.images)
    everything = load_images(DataSettings(name="digits", channels=1, validation=0.0)).train.images
    together = torch.cat([data.train.images, data.validation.images]).flatten(1)
    assert torch.equal(together.unique(dim=0), everything.flatten(1).unique(dim=0))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_modes_are_converted(image_folder, mode, channels):
    picture = Image.open(image_folder / "train" / "cat" / "000.png").convert(mode)
    suffix = "tif" if mode == "CMYK" else "png"
    (image_folder / "train" / "cat" / "000.png").unlink()
    picture.save(image_folder / "train" / "cat" / f"000.{suffix}")
    data = load_images(settings(image_folder, channels=channels))
    expected = np.asarray(picture.convert("RGB" if channels == 3 else "L")).reshape(8, 8, channels)
    assert np.array_equal(data.train.images[0].numpy(), expected)


def test_sixteen_bits_are_refused(image_folder):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(image_folder / "train" / "cat" / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png.*Pillow's mode I;16"):
        load_images(settings(image_folder))


@given(height=st.integers(1, 40), width=st.integers(1, 40), canvas=st.integers(1, 24))
def test_odd_sizes_fill_the_canvas(height, width, canvas):
    picture = Image.fromarray(np.full((height, width, 3), 77, np.uint8))
    source = Source(np.zeros(1), ["a", "b"], lambda i: picture, str)
    decoded = decode(source, 0, (canvas, canvas), 3)
    assert decoded.shape == (canvas, canvas, 3)
    assert (decoded == 77).all()  # no border was filled in


def test_odd_sizes_without_a_canvas_are_refused(image_folder):
    Image.new("RGB", (9, 8)).save(image_folder / "train" / "dog" / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png is 8×9, but the first one is 8×8; .*data\.image_size"):
        load_images(settings(image_folder))
    assert load_images(settings(image_folder, image_size=10)).train.images.shape == (25, 10, 10, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpegs_are_decoded_as_pillow_does(tmp_path, mode, channels):
    smooth = np.add.outer(np.arange(48), np.arange(40)).astype(np.uint8)
    picture = Image.fromarray(np.stack([smooth, smooth * 2, 255 - smooth], 2)).convert(mode)
    picture.save(tmp_path / "a.jpg", quality=95)
    source = Source(np.zeros(1), ["a", "b"], lambda i: (tmp_path / "a.jpg").read_bytes(), str)
    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB" if channels == 3 else "L"), dtype=int)
    decoded = decode(source, 0, None, channels)
    assert decoded.shape == (48, 40, channels)
    assert np.abs(decoded.squeeze() - expected).max() <= 3


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(image_folder, content):
    file = image_folder / "train" / "emu" / "003.png"
    file.write_bytes(file.read_bytes()[:60] if content is None else content)
    with pytest.raises(ValueError, match=r"emu/003\.png cannot be read"):
        load_images(settings(image_folder))
    own = settings(image_folder, image_size=8, resident=False, workers=0, batch_size=24)
    with pytest.raises(ValueError, match=r"emu/003\.png cannot be read"):
        next(iter(train_loader(load_images(own).train, own, 0, CPU)))


def test_missing_and_empty_datasets_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no dataset folder"):
        load_images(settings(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither a folder nor a tar file named train"):
        load_images(settings(tmp_path / "empty"))
    (tmp_path / "empty" / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no images"):
        load_images(settings(tmp_path / "empty"))
    write_images(tmp_path / "half" / "train")
    with pytest.raises(FileNotFoundError, match="named test or val"):
        load_images(settings(tmp_path / "half"))
    write_images(tmp_path / "one" / "train", classes=["cat"])
    write_images(tmp_path / "one" / "test", classes=["cat"])
    with pytest.raises(ValueError, match=r"one class only \(cat\)"):
        load_images(settings(tmp_path / "one"))
    with pytest.raises(FileNotFoundError, match=r"data\.download true"):
        load_images(DataSettings(name="torch/cifar100", root=str(tmp_path)))
    with pytest.raises(ValueError, match="unknown dataset 'cifar100'"):
        load_images(DataSettings(name="cifar100"))


def test_names_of_timm_are_opened(image_folder):
    """The same folder through timm: ``torch/image_folder`` is torchvision's own."""
    ours = load_images(settings(image_folder))
    theirs = load_images(settings(image_folder, name="torch/image_folder", root=str(image_folder)))
    assert ours.classes == theirs.classes
    assert torch.equal(ours.train.images, theirs.train.images)
    assert torch.equal(ours.test.labels, theirs.test.labels)


def test_a_grey_dataset_of_torchvision(tmp_path):
    """MNIST in its own files, ten made-up digits in each split."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(10 * 28 * 28, dtype=np.uint32).astype(np.uint8)
    for split in ("train", "t10k"):
        header = b"".join(number.to_bytes(4, "big") for number in (2051, 10, 28, 28))
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = b"".join(number.to_bytes(4, "big") for number in (2049, 10))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header + bytes(range(10)))
    data = load_images(DataSettings(name="torch/mnist", root=str(tmp_path), channels=1, batch_size=5, validation=0.0))
    assert np.array_equal(data.train.images.numpy().ravel(), pixels)
    assert data.train.labels.tolist() == list(range(10)) and len(data.classes) == 10


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(FileNotFoundError, match=r"'torch/cifar100' cannot be opened in .*no network"):
        load_images(DataSettings(name="torch/cifar100", root=str(tmp_path), download=True))


def test_a_class_without_images_is_named(image_folder):
    (image_folder / "train" / "fox").mkdir()
    with pytest.raises(ValueError, match="class 'fox' has no images"):
        load_images(settings(image_folder))


def test_classes_of_train_and_test_must_agree(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", classes=["cat", "dog", "fox"])
    with pytest.raises(ValueError, match="different classes, emu, fox"):
        load_images(settings(tmp_path))


def test_a_damaged_tar_file_is_named(image_folder, tmp_path):
    (tmp_path / "packed").mkdir()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(image_folder / "train", ".")
    (tmp_path / "packed" / "train.tar.gz").write_bytes(packed.getvalue()[:-200])
    with pytest.raises(ValueError, match=r"train\.tar\.gz cannot be read as a tar file"):
        open_source(f"folder:{tmp_path / 'packed'}", "train")


def test_too_few_images_for_a_batch(image_folder):
    with pytest.raises(ValueError, match="24 training images, fewer than the 32 distinct images"):
        load_images(settings(image_folder, batch_size=32))
    with pytest.raises(ValueError, match=r"validation share of 0\.01 cannot be split off"):
        load_images(settings(image_folder, validation=0.01))


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
    inputs, masks, targets, weights = maker(own)(batch, generator)
    assert inputs.shape == (16, 2, 1, 6, 6) and masks.shape == (16, 2, 1, 6, 6)
    shown = (inputs[:, :, 0, 0, 0] * 255 / 20).round().long()
    assert torch.equal(targets, labels[shown])
    assert sorted(shown[:, 0].tolist()) == sorted([3, 1, 4, 11, 5, 9, 2, 6] * 2)
    assert weights.shape == (16, 2)


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
        inputs, _, targets, _ = maker(own, pixels=PixelMixer("cutmix", probability=1.0))(batch, generator)
        seen |= set((inputs * 255 / 20).round().long().flatten().tolist())
        torch.testing.assert_close(targets.sum(2), torch.ones(2, 2))
    assert seen == set(range(12))


def test_soft_targets_are_what_is_visible(generator):
    images, labels = labelled(5)
    own = DataSettings(batch_size=4, channels=1, padding=0, mean=[0.0], std=[1.0])
    batch = DistinctBatch(images, labels, torch.tensor([0, 1, 2, 3]))
    for _ in range(10):
        inputs, masks, targets, _ = maker(own, pixels=PixelMixer("cutmix", probability=1.0))(batch, generator)
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
