"""Augmentation policies: drawn from (seed, step), off in evaluation, and as documented."""

import sys

import pytest
import torch

from mixmo.cli.main import main
from mixmo.config.data_settings import DataSettings
from mixmo.data.batches import Augmentation
from mixmo.data.policies import GROUPS, Policy
from mixmo.errors import InputError

pytest.importorskip("kornia")


def own(**changes):
    return DataSettings(**({"padding": 0, "flip": False, "mean": [0.0], "std": [1.0]} | changes))


@pytest.mark.parametrize("policy", ["trivialaugment", "randaugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_draws_follow_the_global_generator(policy, channels):
    images = torch.randint(256, (40, 12, 12, channels), dtype=torch.uint8)
    augment, plain = Augmentation(own(policy=policy, channels=channels)), Augmentation(own(channels=channels))
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(augment.random(images, torch.arange(40), torch.Generator().manual_seed(7)))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert found[0].shape == (40, channels, 12, 12) and 0 <= found[0].min() <= found[0].max() <= 1
    assert torch.equal(augment.center(images, torch.arange(40)), plain.center(images, torch.arange(40)))


@pytest.mark.parametrize("policy", ["trivialaugment", "randaugment"])
def test_policies_compute_in_float32_under_autocast(policy):
    images, found = torch.rand(32, 3, 16, 16), []
    for low in (False, True):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            found.append(Policy(own(policy=policy))(images))
    assert torch.equal(*found)


def test_changed_images_are_channels_last():
    images = torch.randint(256, (8, 6, 6, 3), dtype=torch.uint8)
    for policy in ("none", "trivialaugment"):
        found = Augmentation(own(policy=policy)).random(images, torch.arange(8), torch.Generator())
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_evaluation_needs_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    augment = Augmentation(own(policy="trivialaugment"))
    assert augment.center(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.tensor([0])).shape == (1, 3, 4, 4)


def test_images_of_a_batch_get_several_operations():
    """Copies of one image differ between the parts of a batch."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 12, 12)
    changed = Policy(own(policy="randaugment"))(image.expand(40, -1, -1, -1))
    assert len({round(part.mean().item(), 6) for part in changed.chunk(GROUPS)}) == GROUPS


def test_erasing_blackens_a_rectangle_in_its_share_of_the_images():
    torch.manual_seed(0)
    erased = Policy(own(erasing=0.25))(torch.ones(2000, 3, 16, 16))
    black = (erased == 0).all(1)
    share = black.flatten(1).any(1).float().mean().item()
    assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 2000) ** 0.5)
    for mask in black[black.flatten(1).any(1)][:50]:
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()  # one rectangle
    assert torch.equal(Policy(own(erasing=1.0))(torch.ones(9, 1, 8, 8)).flatten(1).amin(1), torch.zeros(9))


def test_a_missing_library_is_one_sentence(monkeypatch, capsys, image_folder, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "kornia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(InputError, match=r"pip install 'mixmo\[augmentation\]'"):
        Policy(own(erasing=0.1))
    words = [
        "fit",
        "digits-cut",
        f"--data.name=folder:{image_folder}",
        "--data.channels=3",
        "--data.policy=randaugment",
    ]
    assert main([*words, "--data.batch_size=8", f"--run={tmp_path}/run"]) == 2
    assert "kornia" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main(["fit", "digits-cut", "--data.erasing=2"]) == 2
    assert "data.erasing is 2" in capsys.readouterr().err


@pytest.mark.parametrize("channels", [1, 3])
def test_photos_are_cut_and_scaled_as_they_say(channels):
    """A crop of a ramp is a ramp, with an area within the bounds; evaluation uses the centre unchanged."""
    ramp = torch.arange(64, dtype=torch.uint8).repeat(64, 1)[None, ..., None].expand(200, 64, 64, channels).contiguous()
    changes = {
        "augmentation": "photo",
        "color_jitter": 0.0,
        "scale": [0.25, 0.5],
        "crop_size": 16,
        "channels": channels,
    }
    augment, index = Augmentation(own(**changes)), torch.arange(200)
    torch.manual_seed(0)
    found = 255 * augment.random(ramp, index, torch.Generator().manual_seed(0))
    assert found.shape == (200, channels, 16, 16) and found.is_contiguous(memory_format=torch.channels_last)
    steps = found[..., 1:-1].diff(dim=3)
    assert (steps > 0.3).all() and (steps.std((1, 2, 3)) < 0.2).all()  # scaled evenly along the row, not mirrored
    widths = found[:, 0, 0, -1] - found[:, 0, 0, 0]
    assert widths.min() > 20 and widths.max() < 56 and widths.std() > 3  # shares of the area times shapes
    mirrored = Augmentation(own(**changes | {"flip": True})).random(ramp, index, torch.Generator().manual_seed(0))
    share = (mirrored[:, 0, 0, -1] < mirrored[:, 0, 0, 0]).float().mean()
    assert 0.35 < share < 0.65
    center = augment.center(ramp, index[:1])
    torch.testing.assert_close(255 * center[0, 0, 0], torch.arange(24.0, 40.0))


def test_photos_change_their_colours():
    grey = torch.full((100, 8, 8, 3), 128, dtype=torch.uint8)
    augment = Augmentation(own(augmentation="photo", color_jitter=0.5))
    torch.manual_seed(0)
    found = augment.random(grey, torch.arange(100), torch.Generator().manual_seed(0))
    levels = found.mean((1, 2, 3))
    assert levels.min() < 0.35 and levels.max() > 0.65 and (found.std((2, 3)) < 0.02).all()
    for bad in ({"scale": [0.5]}, {"scale": [0.0, 1.0]}, {"scale": [0.9, 0.5]}, {"color_jitter": -1.0}):
        with pytest.raises(InputError, match=f"data.{next(iter(bad))} is"):
            own(**bad | {"augmentation": "photo"})


@pytest.mark.parametrize("key", ["mean", "std"])
def test_means_of_0_to_255_are_refused(key):
    with pytest.raises(InputError, match=rf"data.{key} is \[80\.0\], but pixels are divided by 255 first"):
        own(**{key: [80.0]})
    own(**{key: [80.0], "own_transforms": True})
    own(**{key: [1.0]})
