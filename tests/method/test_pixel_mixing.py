"""Mixing in pixels and the label share that stays visible (the reference's figures are in test_parity)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixmo import Mixer
from mixmo.pixel_mixing import PixelMixer, keep_majority, mix_pixels, shared_targets, visible_share


@given(
    kind=st.sampled_from(["mixup", "cutmix"]), members=st.integers(1, 3), half=st.booleans(), seed=st.integers(0, 500)
)
def test_shares_are_shares_and_targets_sum_to_one(kind, members, half, seed):
    generator = torch.Generator().manual_seed(seed)
    size = 8 if half else 16
    masks = Mixer("cut", members, probability=1.0).sample(6, (4, size, size), generator).masks
    keep = keep_majority(PixelMixer(kind, probability=1.0).sample(6, members, (16, 16), generator), masks)
    share = visible_share(keep, masks)
    assert share.min() >= 0 and share.max() <= 1 + 1e-6
    assert (share[masks.mean((2, 3, 4)) > 0] >= 0.5 - 1e-6).all()
    targets = shared_targets(torch.randint(5, (6, members)), torch.randint(5, (6, members)), share, 5)
    torch.testing.assert_close(targets.sum(2), torch.ones(6, members))


def test_visible_share_by_brute_force():
    rng = np.random.default_rng(0)
    keep, masks = rng.random((2, 2, 1, 4, 6)), rng.random((2, 2, 1, 2, 3))
    share = visible_share(torch.from_numpy(keep), torch.from_numpy(masks))
    for b in range(2):
        for i in range(2):
            pooled = keep[b, i, 0].reshape(2, 2, 3, 2).mean((1, 3))
            expected = (pooled * masks[b, i, 0]).mean() / (masks[b, i, 0].mean() + 1e-8)
            assert share[b, i].item() == pytest.approx(expected)


def test_an_empty_mask_has_no_share_and_no_nan():
    assert visible_share(torch.ones(1, 1, 1, 4, 4), torch.zeros(1, 1, 1, 4, 4)).item() == 0


def test_probability_is_per_input(generator):
    keep = PixelMixer("mixup", probability=0.25).sample(4000, 2, (2, 2), generator)
    mixed = (keep.flatten(2) < 1).any(2).float()
    torch.testing.assert_close(mixed.mean(0), torch.full((2,), 0.25), atol=0.03, rtol=0)
    assert mixed[:, 0].dot(mixed[:, 1]).item() / 4000 == pytest.approx(0.25**2, abs=0.02)


def test_mixup_ratio_is_uniform_at_alpha_one(generator):
    keep = PixelMixer("mixup", probability=1.0).sample(20_000, 1, (1, 1), generator).flatten()
    torch.testing.assert_close(
        keep.quantile(torch.tensor([0.1, 0.5, 0.9])), torch.tensor([0.1, 0.5, 0.9]), atol=0.02, rtol=0
    )


def test_mixture_keeps_what_the_mask_says():
    inputs, partners = torch.rand(2, 2, 3, 4, 4), torch.rand(2, 2, 3, 4, 4)
    keep = torch.rand(2, 2, 1, 4, 4).round()
    mixed = mix_pixels(inputs, partners, keep)
    assert torch.equal(mixed, torch.where(keep.bool(), inputs, partners))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "mixupp"}, "did you mean 'mixup'"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"probability": 2.0}, "probability is 2.0"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelMixer(**arguments)
