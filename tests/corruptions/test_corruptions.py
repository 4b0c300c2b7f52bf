"""All 19 corruptions: shapes, severities, seeds, bad input."""

import numpy as np
import pytest
import torch
from photographs import COUNT, corrupted, pictures
from PIL import Image

from mixmo.corruptions import KINDS, LARGE, SEVERITIES, SMALL


def test_every_kind_has_five_severities_in_both_tables():
    assert len(KINDS) == 19
    assert list(SMALL) == list(LARGE) == list(KINDS)
    assert all(len(table[kind]) == 5 for table in (SMALL, LARGE) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [8, 32, 112])
def test_shapes_types_and_seeds(kind, side):
    images = pictures(side, width=side + 4)
    for severity in (1, 5):
        found = corrupted(kind, severity, images)
        assert found.shape == images.shape and found.dtype == torch.uint8
        assert torch.equal(found, corrupted(kind, severity, images))
    grey = corrupted(kind, 3, images[..., :1])
    assert grey.shape == (*images.shape[:3], 1)
    assert not torch.equal(found, images)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_severity_grows(kind):
    images = pictures()
    distances = [(corrupted(kind, severity, images).float() - images).abs().mean().item() for severity in SEVERITIES]
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
    found = corrupted(kind, 4, same)
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_grey_images_are_those_of_grey_pictures_in_colour(kind):
    """Corrupted in colour, as stored by the published files, and then converted by Pillow."""
    grey = pictures()[..., :1]
    colour = corrupted(kind, 5, grey.expand(-1, -1, -1, 3).contiguous())
    expected = torch.stack([torch.from_numpy(np.array(Image.fromarray(each.numpy()).convert("L"))) for each in colour])
    assert (corrupted(kind, 5, grey)[..., 0].int() - expected.int()).abs().max() <= 1


def test_bad_input_is_named():
    images = pictures()
    with pytest.raises(ValueError, match="did you mean 'fog'"):
        corrupted("fogg", 1, images)
    with pytest.raises(ValueError, match="severity 6 of fog"):
        corrupted("fog", 6, images)
    with pytest.raises(ValueError, match=r"float32, are not \(B, H, W, 3 or 1\)"):
        corrupted("fog", 1, images.float())
