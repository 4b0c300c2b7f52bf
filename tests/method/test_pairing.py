"""Batch repetition and input repetition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixmo import pair


@given(
    distinct=st.integers(1, 12), members=st.integers(1, 5), repetition=st.integers(1, 4),
    rho=st.floats(0, 0.99), seed=st.integers(0, 1000),
)  # fmt: skip
def test_every_member_sees_every_image_b_times(distinct, members, repetition, rho, seed):
    pairs = pair(distinct, members, repetition, rho, torch.Generator().manual_seed(seed))
    assert pairs.shape == (distinct * repetition, members)
    for member in range(members):
        assert torch.equal(torch.bincount(pairs[:, member], minlength=distinct), torch.full((distinct,), repetition))
    again = pair(distinct, members, repetition, rho, torch.Generator().manual_seed(seed))
    assert torch.equal(pairs, again)


@pytest.mark.parametrize(("rho", "shared"), [(0.0, 0), (0.25, 16), (0.5, 32)])
def test_input_repetition_is_a_share_of_positions(rho, shared, generator):
    pairs = pair(64, 2, 1, rho, generator)
    assert (pairs[64 - shared :, 0] == pairs[64 - shared :, 1]).all()
    by_chance = (pairs[: 64 - shared, 0] == pairs[: 64 - shared, 1]).sum()
    assert by_chance < 8  # one is expected


def test_members_are_shuffled_independently(generator):
    pairs = torch.cat([pair(4, 3, 1, generator=generator) for _ in range(4000)])
    counts = torch.zeros(4, 4)
    counts.index_put_((pairs[:, 0], pairs[:, 1]), torch.ones(len(pairs)), accumulate=True)
    torch.testing.assert_close(counts / len(pairs), torch.full((4, 4), 1 / 16), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 2, 0), "batch_repetition is 0"),
        ((4, 2, 1, 1.0), "input_repetition is 1"),
        ((4, 2, 1, -0.1), "input_repetition is -0.1"),
        ((4, 2, 1, 1.1), "input_repetition is 1.1"),
    ],
)
def test_bad_pairings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pair(*arguments)


def test_a_single_network_may_repeat_its_only_input():
    assert sorted(pair(4, 1, 1, 1.0).flatten().tolist()) == [0, 1, 2, 3]
