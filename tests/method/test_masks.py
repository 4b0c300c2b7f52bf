"""Every kind of mask: properties for any shape, and the distribution of rectangles in closed form."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixmo import Mixer, loss_weights
from mixmo.masks import CONSTANT, KINDS
from mixmo.masks.rectangles import cut, cut_exact

RECTANGLES = ["cut", "cut-exact"]
CLIPPED = {"cut", "cut-partition"}
"""The kinds that cover less than asked for, since rectangles are clipped at the border."""

BINARY = frozenset(KINDS) - CONSTANT - {"noise", "patchup-soft"}
"""The kinds of 0 and 1 for two members."""
PARTITIONS = BINARY - {"cut", "cut-exact"}
"""The kinds of 0 and 1 for any number of members."""


def large_enough(kind, members, shape):
    """Return whether a shape has the row, column, channel or cell that some kinds need for each member."""
    axes = {"channel": [0], "horizontal": [1], "vertical": [2], "grid": [1, 2]}.get(kind, [])
    return tuple(max(size, members) if axis in axes else size for axis, size in enumerate(shape))


shapes = st.tuples(st.integers(1, 5), st.integers(1, 17), st.integers(1, 17))


@given(
    kind=st.sampled_from(sorted(KINDS)),
    draw_per=st.sampled_from(["batch", "sample"]),
    batch=st.integers(1, 9),
    members=st.integers(1, 5),
    shape=shapes,
    alpha=st.one_of(st.just(0.0), st.floats(0.01, 100)),
    probability=st.sampled_from([0.0, 0.5, 1.0]),
    progress=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_any_draw_is_a_partition(kind, draw_per, batch, members, shape, alpha, probability, progress, seed):
    shape = large_enough(kind, members, shape)
    mixer = Mixer(kind, members, alpha, probability, draw_per)
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
@given(members=st.integers(2, 4), shape=shapes, alpha=st.floats(0.05, 20), seed=st.integers(0, 1000))
def test_binary_kinds_are_binary(kind, members, shape, alpha, seed):
    members = members if kind in PARTITIONS else 2
    shape = large_enough(kind, members, shape)
    generator = torch.Generator().manual_seed(seed)
    ratios = torch._sample_dirichlet(torch.full((5, members), alpha), generator)
    mask = KINDS[kind](ratios, shape, generator, None)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert (mask.sum(1) == 1).all()


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"mimo"}))
@given(members=st.integers(2, 4), shape=shapes, winner=st.integers(0, 3), seed=st.integers(0, 1000))
def test_a_ratio_of_one_leaves_nothing_to_the_others(kind, members, shape, winner, seed):
    shape = large_enough(kind, members, shape)
    ratios = torch.eye(members)[[min(winner, members - 1)] * 3]
    mask = KINDS[kind](ratios, shape, torch.Generator().manual_seed(seed), None)
    assert not mask.isnan().any()
    torch.testing.assert_close(mask.sum(1), torch.ones_like(mask[:, 0]))
    if kind not in CLIPPED:
        torch.testing.assert_close(mask.mean((2, 3, 4)), ratios)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - CLIPPED - {"mimo"}))
@pytest.mark.parametrize("shares", [(0.25, 0.75), (0.5, 0.5), (0.5, 0.125, 0.375), (0.25, 0.25, 0.25, 0.25)])
def test_expected_areas_are_the_requested_ones(kind, shares, generator):
    """On a map whose rows, columns, channels and cells divide exactly by the ratios."""
    ratios = torch.tensor([shares]).expand(3000, -1)
    area = KINDS[kind](ratios, (8, 16, 8), generator, None).mean((2, 3, 4))
    error = 5 * area.std(0) / 3000**0.5 + 1 / 256  # a rectangle's area is exact up to half a column of a row
    assert (area.mean(0) - torch.tensor(shares)).abs().le(error + (kind == "cut-exact") / 16).all(), area.mean(0)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - CONSTANT))
def test_roles_permute_the_parts(kind):
    ratios = torch.tensor([[0.5, 0.3, 0.2]]).expand(4, 3)

    def draw(roles):
        return KINDS[kind](ratios, (3, 6, 6), torch.Generator().manual_seed(1), roles)

    for roles in ([0, 1, 2], [2, 0, 1]):
        assert torch.equal(draw(torch.tensor(roles)), draw(None)[:, roles])
    per_sample = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 0, 2], [2, 1, 0]])
    expected = torch.stack([parts[roles] for parts, roles in zip(draw(None), per_sample, strict=True)])
    assert torch.equal(draw(per_sample), expected)


@pytest.mark.parametrize("kind", ["horizontal", "vertical", "channel", "bernoulli"])
def test_what_is_only_repeated_takes_no_memory(kind, generator):
    mask = KINDS[kind](torch.full((4, 3), 1 / 3), (16, 32, 32), generator, None)
    assert 0 in mask.stride() and mask.untyped_storage().nbytes() <= 4 * 4 * 3 * 32


def test_a_grid_needs_a_cell_for_each_member():
    with pytest.raises(ValueError, match="'grid' has 4 cells on a map of 2×2, fewer than the 5 members"):
        Mixer("grid", 5).sample(1, (16, 2, 2))


@pytest.mark.parametrize(
    ("kind", "shape"), [("horizontal", (9, 2, 9)), ("vertical", (9, 9, 2)), ("channel", (2, 9, 9))]
)
def test_an_axis_needs_a_place_for_each_member(kind, shape):
    with pytest.raises(ValueError, match="along an axis of 2 cannot be shared among 3 members"):
        Mixer(kind, 3).sample(1, shape)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_masks_are_the_same_under_autocast(kind):
    """As in a training step; matrix products in bfloat16 would shift their outlines."""
    plain, other = (torch.Generator().manual_seed(0) for _ in range(2))
    mixer = Mixer(kind, 2, probability=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        mix = mixer.sample(5, (4, 33, 40), other)
    assert mix.masks.dtype == mix.ratios.dtype == torch.float32
    assert torch.equal(mix.masks, mixer.sample(5, (4, 33, 40), plain).masks)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_devices_agree_in_distribution(kind):
    mixer, found = Mixer(kind, 3, probability=1.0), {}
    for device in ("cpu", "cuda"):
        generator = torch.Generator(device).manual_seed(0)
        mixes = [mixer.sample(500, (8, 16, 16), generator) for _ in range(20)]
        assert all(mix.masks.device.type == device for mix in mixes)
        found[device] = torch.cat([mix.ratios.cpu() for mix in mixes]).sort(0).values
    assert (found["cpu"] - found["cuda"]).abs().mean() < 0.02


def test_choices_are_drawn_for_the_batch_or_for_each_sample(generator):
    shape = (1, 16, 16)

    def shares_of_binary(draw_per):
        mixer = Mixer("vertical", 2, probability=0.5, draw_per=draw_per)
        masks = [mixer.sample(50, shape, generator).masks for _ in range(200)]
        return torch.stack([((m == 0) | (m == 1)).all(4).all(3).all(2).all(1).float().mean() for m in masks])

    batch, sample = shares_of_binary("batch"), shares_of_binary("sample")
    assert set(batch.tolist()) == {0.0, 1.0}
    assert batch.mean().item() == pytest.approx(0.5, abs=0.15)
    assert sample.mean().item() == pytest.approx(0.5, abs=0.03) and 0.05 < sample.std() < 0.1


@pytest.mark.parametrize("draw_per", ["batch", "sample"])
def test_kinds_are_drawn_with_their_probabilities(draw_per, generator):
    """Recognised by their layout: whole channels, whole rows, or a constant."""
    mixer = Mixer({"channel": 0.5, "horizontal": 0.3, "linear": 0.2}, 2, 0.0, 1.0, draw_per)
    found = torch.zeros(3)
    for _ in range(150 if draw_per == "sample" else 1500):
        first = mixer.sample(20, (8, 8, 1), generator).masks[:, 0, :, :, 0]
        by_channel = (first[:, :, :1] == first).all(2).all(1)
        by_row = (first[:, :1] == first).all(2).all(1)
        kinds = torch.stack([by_channel & ~by_row, by_row & ~by_channel, by_row & by_channel], 1).float().mean(0)
        found += kinds
        if draw_per == "batch":
            assert kinds.max() == 1
    torch.testing.assert_close(found / found.sum(), torch.tensor([0.5, 0.3, 0.2]), atol=0.06, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "cuttt"}, "unknown mixer.kind 'cuttt'; did you mean 'cut'"),
        ({"kind": {"cut": 0.5, "coww": 0.5}}, "unknown mixer.kind 'coww'; did you mean 'cow'"),
        ({"kind": {"cut": 0.5, "cow": 0.6}}, "probabilities must be at least 0 and sum to 1"),
        ({"kind": {"cut": 1.5, "cow": -0.5}}, "probabilities must be at least 0 and sum to 1"),
        ({"draw_per": "epoch"}, "unknown mixer.draw_per 'epoch'"),
        ({"num_members": 0}, "num_members is 0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"probability": 1.5}, "probability is 1.5"),
        ({"probability": float("nan")}, "probability is nan"),
    ],
)
def test_bad_mixers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixer(**arguments)


@pytest.mark.parametrize("kind", RECTANGLES)
@given(ratio=st.floats(0, 1), shape=shapes, seed=st.integers(0, 1000))
def test_rectangles_of_two_members_are_binary(kind, ratio, shape, seed):
    ratios = torch.tensor([[ratio, 1 - ratio]]).expand(4, 2)
    mask = KINDS[kind](ratios, shape, torch.Generator().manual_seed(seed))
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    for first in mask[:, 0, 0]:  # a rectangle is the product of its own projections
        assert torch.equal(first, torch.outer(first.amax(1), first.amax(0)))


@pytest.mark.parametrize("kind", RECTANGLES)
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
    area = cut(ratios, (1, 12, 20), generator)[:, 0].mean((1, 2, 3))
    expected = clipped_side(12, ratio) * clipped_side(20, ratio) / 240
    assert area.mean().item() == pytest.approx(expected, abs=5 * area.std().item() / 20_000**0.5 + 1e-6)


@pytest.mark.parametrize(("size", "mean"), [(32, 0.306), (16, 0.286), (8, 0.244)])
def test_published_cut_is_smaller_than_asked(size, mean, generator):
    """Flooring and clipping at Beta(2, 2): the published method's areas."""
    ratios = torch._sample_dirichlet(torch.full((40_000, 2), 2.0), generator)
    area = cut(ratios, (1, size, size), generator)[:, 0].mean((1, 2, 3))
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
    area = cut_exact(ratios, shape, torch.Generator().manual_seed(seed))[:, 0].mean((1, 2, 3))
    assert (area - ratio).abs().max() <= 1 / (2 * width) + 1e-6


def test_exact_cut_is_anywhere_it_fits(generator):
    ratios = torch.full((4000, 2), 0.5)
    hits = cut_exact(ratios, (1, 4, 4), generator)[:, 0, 0].mean(0)
    assert (hits > 0.1).all()
    torch.testing.assert_close(hits, hits.flip(0), atol=0.05, rtol=0)
    torch.testing.assert_close(hits, hits.flip(1), atol=0.05, rtol=0)
