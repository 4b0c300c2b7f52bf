"""Contents of a batch: crops, pairs, shared positions, mixed pixels, and their targets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.functional import five_crop

from mixmo.batch_mixing import BatchMixer, TensorImages
from mixmo.config.data_settings import DataSettings
from mixmo.data.batches import Augmentation, CenterCrop
from mixmo.data.image_sets import DistinctBatch
from mixmo.header import Preparation
from mixmo.network import MixMo
from mixmo.pairing import pair
from mixmo.pixel_mixing import PixelMixer


@pytest.mark.parametrize(("mode", "oracle"), [("zeros", "constant"), ("reflect", "reflect")])
def test_random_crop_and_mirror_by_brute_force(generator, mode, oracle):
    images = torch.randint(256, (5, 6, 7, 3), dtype=torch.uint8, generator=generator)
    own = DataSettings(padding=2, padding_mode=mode, crop_size=4, flip=True, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    index = torch.arange(5).repeat(40)
    crops = Augmentation(own).random(images, index, generator)
    assert crops.shape == (200, 3, 4, 4)
    padded = np.pad(images.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)), mode=oracle)
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
    """As large as in training, with the image in the centre."""
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
    """Identifiable images: image i has the value 20 i everywhere."""
    values = (torch.arange(count) * 20).to(torch.uint8)
    return values[:, None, None, None].expand(count, side, side, 1).contiguous(), torch.arange(count) % 5


def maker(own, kind="cut", pixels=None, members=2, probability=1.0):
    """Mixtures on maps of the images' own size, of five classes."""
    net = MixMo("wide_resnet10_1", members, num_classes=5, in_chans=1)
    mixer = BatchMixer(
        net, kind, probability=probability, pixels=pixels,
        batch_repetition=own.batch_repetition, input_repetition=own.input_repetitions,
    )  # fmt: skip
    augment = Augmentation(own)
    return lambda batch, generator, progress=0.0: mixer.mix(augment.source(batch, generator), generator, progress)


def test_shared_positions_are_those_of_one_image(generator):
    images, labels = labelled()
    batch = DistinctBatch(images, labels, torch.arange(8))
    own = DataSettings(batch_size=8, channels=1, padding=0, mean=[0.0], std=[1.0], input_repetition=0.5)
    own.input_repetition_end = 0.25
    for progress, least in ((0.0, 4), (1.0, 2)):
        mixed = maker(own, members=3)(batch, generator, progress)
        shown = mixed.inputs[:, :, 0, 0, 0]
        assert torch.equal(mixed.shared, (shown == shown[:, :1]).all(1))
        assert mixed.shared[-least:].all() and least <= mixed.shared.sum() < 8


def test_copies_are_augmented_apart(generator):
    images = torch.randint(256, (2, 12, 12, 1), dtype=torch.uint8)
    batch = DistinctBatch(images, torch.tensor([0, 1]), torch.tensor([0, 1]))
    own = DataSettings(batch_size=32, batch_repetition=16, channels=1, padding=4)
    assert len(maker(own)(batch, generator).inputs.flatten(0, 1).flatten(1).unique(dim=0)) > 30


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


def test_a_batch_is_a_function_of_its_generator(generator):
    images, labels = labelled()
    own = DataSettings(batch_size=8, channels=1)
    batch = DistinctBatch(images, labels, torch.arange(8))
    one, other = (
        maker(own, pixels=PixelMixer("mixup"))(batch, torch.Generator().manual_seed(5), 0.3) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one[:5], other[:5], strict=True))


def test_copies_of_a_step_are_told_apart():
    """If there are as many copies as positions, no copy occurs twice, for any pairs."""
    distinct, repetition, members = 5, 3, 2
    count = repetition * members
    images = torch.arange(float(distinct * count))[:, None, None, None]
    copies = TensorImages(images, torch.arange(distinct))
    for seed in range(20):
        pairs = pair(distinct, members, repetition, 0.4, torch.Generator().manual_seed(seed))
        found = copies.copy_pairs(pairs, slice(None)).flatten().int()
        assert (found // count).tolist() == pairs.flatten().tolist() and len(found.unique()) == len(found)
        parts = [copies.copy_pairs(pairs, part) for part in (slice(0, 4), slice(4, 15))]
        assert torch.equal(torch.cat(parts).flatten().int(), found)


@given(st.integers(0, 5), st.integers(0, 5))
def test_crops_are_the_middle_and_the_corners(down, right):
    """torchvision's five crops; the centre crop is the one used without test-time augmentation."""
    how = Preparation(channels=1, interpolation="bicubic", mean=[0.3], std=[0.2], crop_size=[8, 6])
    images = torch.arange(2 * (8 + down) * (6 + right), dtype=torch.uint8).reshape(2, 8 + down, 6 + right, 1)
    crop = CenterCrop(how)
    middle, *corners = crop.views(images, "crops", torch.tensor([1]))
    expected = (images[1:].permute(0, 3, 1, 2) / 255 - 0.3) / 0.2
    assert torch.equal(middle, crop.center(images, torch.tensor([1])))
    for found, wanted in zip(corners, five_crop(expected, [8, 6])[:4], strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
