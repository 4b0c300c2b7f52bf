"""Every kind of mask: what holds for any shape, and the laws of the rectangles in closed form."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixmo import Mixer, loss_weights, masks
from mixmo.masks import BINARY, KINDS

shapes = st.tuples(st.integers(1, 5), st.integers(1, 17), st.integers(1, 17))


@given(
    kind=st.sampled_from(sorted(KINDS)),
    batch=st.integers(1, 9),
    members=st.integers(1, 5),
    shape=shapes,
    alpha=st.one_of(st.just(0.0), st.floats(0.01, 100)),
    probability=st.sampled_from([0.0, 0.5, 1.0]),
    progress=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_any_draw_is_a_partition(kind, batch, members, shape, alpha, probability, progress, seed):
    mixer = Mixer(kind, members, alpha, probability)
    mix = mixer.sample(batch, shape, torch.Generator().manual_seed(seed), progress)
    assert mix.masks.shape in {(batch, members, c, *shape[1:]) for c in (1, shape[0])}
    assert mix.masks.dtype == mix.ratios.dtype == torch.float32
    assert mix.masks.min() >= 0 and mix.masks.max() <= 1
    torch.testing.assert_close(mix.masks.sum(1), torch.ones_like(mix.masks[:, 0]))
    torch.testing.assert_close(mix.ratios, mix.masks.mean((2, 3, 4)))
    weights = loss_weights(mix.ratios)
    torch.testing.assert_close(weights.mean(1), torch.ones(batch))
    assert (weights[mix.ratios == 0] == 0).all()

    again = mixer.sample(batch, shape, torch.Generator().manual_seed(seed), progress)
    assert torch.equal(mix.masks, again.masks)


@pytest.mark.parametrize("kind", sorted(BINARY))
@given(ratio=st.floats(0, 1), shape=shapes, seed=st.integers(0, 1000))
def test_rectangles_of_two_members_are_binary(kind, ratio, shape, seed):
    ratios = torch.tensor([[ratio, 1 - ratio]]).expand(4, 2)
    mask = KINDS[kind](ratios, shape, torch.Generator().manual_seed(seed))
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    for first in mask[:, 0, 0]:  # a rectangle is the product of its own projections
        assert torch.equal(first, torch.outer(first.amax(1), first.amax(0)))


@pytest.mark.parametrize("kind", sorted(BINARY))
def test_other_members_share_the_rest_in_proportion(kind, generator):
    ratios = torch.tensor([[0.2, 0.6, 0.2]])
    mask = KINDS[kind](ratios, (1, 16, 16), generator)[0, :, 0]
    outside = mask[:, mask[0] == 0]
    torch.testing.assert_close(outside[1], torch.full_like(outside[1], 0.75))
    torch.testing.assert_close(outside[2], torch.full_like(outside[2], 0.25))


def clipped_side(size, ratio):
    """The expected clipped side, by counting every centre."""
    half = int(size * np.sqrt(ratio)) // 2
    centre = np.arange(size)
    return (np.minimum(centre + half, size) - np.maximum(centre - half, 0)).mean()


@pytest.mark.parametrize("ratio", [0.04, 0.3, 0.5, 0.9, 1.0])
def test_cut_has_the_expected_area(ratio, generator):
    ratios = torch.tensor([[ratio, 1 - ratio]]).expand(20_000, 2)
    area = masks.cut(ratios, (1, 12, 20), generator)[:, 0].mean((1, 2, 3))
    expected = clipped_side(12, ratio) * clipped_side(20, ratio) / 240
    assert area.mean().item() == pytest.approx(expected, abs=5 * area.std().item() / 20_000**0.5 + 1e-6)


@pytest.mark.parametrize(("size", "mean"), [(32, 0.306), (16, 0.286), (8, 0.244)])
def test_published_cut_is_smaller_than_asked(size, mean, generator):
    """Flooring and clipping at Beta(2, 2): the published method's areas."""
    ratios = torch._sample_dirichlet(torch.full((40_000, 2), 2.0), generator)
    area = masks.cut(ratios, (1, size, size), generator)[:, 0].mean((1, 2, 3))
    assert area.mean().item() == pytest.approx(mean, abs=0.004)
    if size == 32:
        quantiles = area.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
        torch.testing.assert_close(quantiles, torch.tensor([0.086, 0.191, 0.293, 0.398, 0.584]), atol=0.012, rtol=0)
    if size == 8:
        assert (area == 0).float().mean().item() == pytest.approx(0.011, abs=0.003)


@given(ratio=st.floats(0, 1), shape=shapes, seed=st.integers(0, 1000))
def test_exact_cut_keeps_its_area(ratio, shape, seed):
    width = shape[2]
    ratios = torch.tensor([[ratio, 1 - ratio]]).expand(4, 2)
    area = masks.cut_exact(ratios, shape, torch.Generator().manual_seed(seed))[:, 0].mean((1, 2, 3))
    assert (area - ratio).abs().max() <= 1 / (2 * width) + 1e-6


def test_exact_cut_is_anywhere_it_fits(generator):
    ratios = torch.full((4000, 2), 0.5)
    hits = masks.cut_exact(ratios, (1, 4, 4), generator)[:, 0, 0].mean(0)
    assert (hits > 0.1).all()
    torch.testing.assert_close(hits, hits.flip(0), atol=0.05, rtol=0)
    torch.testing.assert_close(hits, hits.flip(1), atol=0.05, rtol=0)
