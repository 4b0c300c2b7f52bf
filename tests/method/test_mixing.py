"""The mixing block, the loss and the schedule, against NumPy and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixmo import Mixer, loss_weights, mixed_binary_cross_entropy, mixed_cross_entropy, pair
from mixmo.errors import InputError
from mixmo.masks import KINDS
from mixmo.mixing import mix_features, scheduled_probability
from mixmo.pixel_mixing import PIXEL_KINDS, PixelMixer


def test_loss_weights_match_the_published_table():
    kappa = torch.tensor([0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95])
    weights = loss_weights(torch.stack([kappa, 1 - kappa], 1), root=3.0)
    expected = torch.tensor([0.545, 0.649, 0.819, 1.000, 1.181, 1.351, 1.455])
    torch.testing.assert_close(weights[:, 0], expected, atol=6e-4, rtol=0)


@pytest.mark.parametrize("root", [0.0, -1.0, float("nan")])
def test_root_is_positive(root):
    with pytest.raises(ValueError, match="root is"):
        loss_weights(torch.ones(1, 2) / 2, root)


@given(members=st.integers(1, 4), channels=st.integers(1, 3), seed=st.integers(0, 100), full=st.booleans())
def test_mixture_is_equation_two(members, channels, seed, full):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((members, 2, channels, 3, 4)).astype(np.float32)
    masks = rng.random((2, members, channels if full else 1, 3, 4)).astype(np.float32)
    expected = members * sum(masks[:, i] * features[i] for i in range(members))
    mixed = mix_features(list(torch.from_numpy(features)), torch.from_numpy(masks))
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-5, atol=1e-6)
    equal = mix_features(list(torch.from_numpy(features)), None)
    np.testing.assert_allclose(equal.numpy(), features.sum(0), rtol=1e-5, atol=1e-6)


def test_gradients_of_the_mixture(generator):
    features = [torch.randn(2, 3, 4, 4, dtype=torch.double, requires_grad=True) for _ in range(3)]
    masks = torch.rand(2, 3, 1, 4, 4, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda *maps: mix_features(maps, masks), features)


def test_masks_of_a_wrong_shape_are_refused():
    features = [torch.zeros(2, 3, 4, 4)] * 2
    for shape in [(2, 2, 2, 4, 4), (2, 3, 1, 4, 4), (1, 2, 1, 4, 4), (2, 2, 1, 4, 5), (2, 2, 4, 4)]:
        with pytest.raises(ValueError, match="masks have shape"):
            mix_features(features, torch.zeros(shape))


@pytest.mark.parametrize("soft", [False, True])
def test_loss_is_equation_three(soft):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((5, 3, 4))
    weights = rng.random((5, 3))
    targets = rng.integers(0, 4, (5, 3))
    probabilities = rng.dirichlet(np.ones(4), (5, 3)) if soft else np.eye(4)[targets]
    log_softmax = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    expected = (weights * -(probabilities * log_softmax).sum(2)).sum(1).mean()
    given_targets = torch.from_numpy(probabilities).float() if soft else torch.from_numpy(targets)
    loss = mixed_cross_entropy(torch.from_numpy(logits).float(), given_targets, torch.from_numpy(weights).float())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_are_those_of_torch(soft, smoothing):
    """Σ_k c_k t_k (-log p_k), t the smoothed target; not divided by the sum of the weights."""
    rng = np.random.default_rng(1)
    logits, weights, factors = rng.standard_normal((5, 3, 4)), rng.random((5, 3)), rng.random(4) + 0.1
    targets = rng.integers(0, 4, (5, 3))
    probabilities = rng.dirichlet(np.ones(4), (5, 3)) if soft else np.eye(4)[targets]
    smoothed = (1 - smoothing) * probabilities + smoothing / 4
    log_softmax = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    expected = (weights * -(factors * smoothed * log_softmax).sum(2)).sum(1).mean()
    loss = mixed_cross_entropy(
        torch.from_numpy(logits).float(),
        torch.from_numpy(probabilities).float() if soft else torch.from_numpy(targets),
        torch.from_numpy(weights).float(),
        smoothing,
        torch.from_numpy(factors).float(),
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"class_weights have shape \(3,\), but there are 4 classes"):
        mixed_cross_entropy(torch.zeros(1, 2, 4), torch.zeros(1, 2).long(), class_weights=torch.ones(3))


def test_loss_is_computed_in_float32():
    logits = torch.randn(4, 2, 10)
    targets = torch.randint(10, (4, 2))
    half = mixed_cross_entropy(logits.bfloat16(), targets)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(mixed_cross_entropy(logits.bfloat16().float(), targets).item())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([[0, 3]]), "Target 3 is out of bounds"),
        (torch.tensor([[-1, 0]]), "Target -1 is out of bounds"),
        (torch.tensor([0, 1]), "targets have shape"),
        (torch.zeros(1, 2, 2), "targets have shape"),
    ],
)
def test_bad_targets_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        mixed_cross_entropy(torch.zeros(1, 2, 3), targets)


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match="weights have shape"):
        mixed_cross_entropy(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long), torch.ones(2))


def test_schedule_of_the_published_300_epochs():
    expected = {1: 0.5, 274: 0.5, 275: 0.5, 276: 0.48, 300: 0.0, 288: 0.24}
    for epoch, probability in expected.items():
        assert scheduled_probability(0.5, epoch / 300) == pytest.approx(probability, abs=1e-9)


def test_binary_or_linear_is_drawn_once_per_batch(generator):
    mixer = Mixer("cut", 2, probability=0.3)
    binary = 0
    for _ in range(600):
        masks = mixer.sample(4, (1, 8, 8), generator).masks
        samples = [set(mask.unique().tolist()) <= {0.0, 1.0} for mask in masks[:, 0]]
        assert len(set(samples)) == 1
        binary += samples[0]
    assert binary / 600 == pytest.approx(0.3, abs=0.08)


def test_roles_are_shuffled_once_per_batch(generator):
    """The rectangle is smaller on average, so every member gets it equally often."""
    mixer = Mixer("cut", 3, probability=1.0)
    holders = torch.zeros(3)
    for _ in range(300):
        masks = mixer.sample(6, (1, 16, 16), generator).masks[:, :, 0]
        pure = torch.stack([((mask == 0) | (mask == 1)).flatten(1).all(1) for mask in masks]).all(0)
        assert pure.sum() == 1  # one member has a 0/1 mask in every sample
        holders += pure
    torch.testing.assert_close(holders / 300, torch.full((3,), 1 / 3), atol=0.1, rtol=0)


def test_alpha_zero_and_the_end_of_training_mix_equally(generator):
    mix = Mixer("cut", 4, alpha=0, probability=1.0).sample(3, (1, 5, 5), generator, progress=1.0)
    assert torch.equal(mix.masks, torch.full((3, 4, 1, 5, 5), 0.25))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixer_draws_on_the_device_that_is_named(kind):
    """The meta device stands in for a GPU: an operand left on the CPU would raise."""
    mix = Mixer(kind, 2, alpha=0, probability=1.0).sample(4, (4, 8, 8), device="meta")
    assert mix.masks.device.type == mix.ratios.device.type == "meta"


def test_a_generator_of_another_device_is_refused(generator):
    for draw in (
        lambda: Mixer("cut").sample(4, (4, 8, 8), generator, device="meta"),
        lambda: PixelMixer("cutmix").sample(4, 2, (8, 8), generator, device="meta"),
        lambda: pair(4, generator=generator, device="meta"),
    ):
        with pytest.raises(ValueError, match="the generator is on cpu, but device is meta"):
            draw()
    assert pair(4, device="meta").device.type == "meta"


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_ratios_are_dirichlet(alpha, generator):
    """Mean 1/M, variance (1/M)(1 - 1/M) / (M alpha + 1): torch's sampler that takes a generator has no public name."""
    ratios = Mixer("linear", 3, alpha=alpha).sample(40_000, (1, 1, 1), generator).ratios
    assert ratios.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    assert ratios.var(0).tolist() == pytest.approx([2 / 9 / (3 * alpha + 1)] * 3, rel=0.03)
    again = Mixer("linear", 3, alpha=alpha).sample(40_000, (1, 1, 1), torch.Generator().manual_seed(0)).ratios
    assert torch.equal(ratios, again)


def test_the_loss_of_several_labels_is_the_weighted_sum_of_binary_cross_entropies(generator):
    logits, targets = torch.randn(5, 2, 3, generator=generator), torch.rand(5, 2, 3, generator=generator).round()
    weights = torch.rand(5, 2, generator=generator)
    p = logits.sigmoid()
    by_hand = -(weights[..., None] * (targets * p.log() + (1 - targets) * (1 - p).log())).sum((1, 2)).mean()
    torch.testing.assert_close(mixed_binary_cross_entropy(logits, targets, weights), by_hand)
    two = torch.stack([torch.zeros_like(logits), logits], -1).flatten(1, 2)  # absent and present: two classes
    smooth = mixed_cross_entropy(two, targets.flatten(1).long(), weights.repeat_interleave(3, 1), 0.2)
    torch.testing.assert_close(mixed_binary_cross_entropy(logits, targets, weights, 0.2), smooth)
    for wrong, message in ((targets[:, 0], "targets have shape"), (targets[:, :, :2], "targets have shape")):
        with pytest.raises(InputError, match=message):
            mixed_binary_cross_entropy(logits, wrong)
    with pytest.raises(InputError, match="weights have shape"):
        mixed_binary_cross_entropy(logits, targets, weights[:, :1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_draws_do_not_depend_on_the_default_type(dtype):
    """Lightning's ``bf16-true`` changes it during a step."""

    def draw():
        drawn = []
        for kind in KINDS:
            mix = Mixer(kind, probability=0.7).sample(6, (4, 9, 9), torch.Generator().manual_seed(0))
            drawn += [mix.masks, mix.ratios]
        pixels = [PixelMixer(kind).sample(4, 2, (8, 8), torch.Generator().manual_seed(0)) for kind in PIXEL_KINDS]
        return [*drawn, *pixels, pair(6, 2, 2, 0.5, torch.Generator().manual_seed(0), torch.device("cpu"))]

    expected, before = draw(), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = draw()
    finally:
        torch.set_default_dtype(before)
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_constant_kinds_among_others_are_never_replaced(generator):
    """Equal shares, of mimo, keep their half, also at the end of training, when the others are linear."""
    mixer = Mixer({"mimo": 0.5, "cut": 0.5}, probability=0.5)
    for progress in (0.0, 1.0):
        equal = [bool((mixer.sample(2, (4, 9, 9), generator, progress).masks == 0.5).all()) for _ in range(400)]
        assert 0.42 < np.mean(equal) < 0.58


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_masks_of_ones_own_become_float32(dtype, generator):
    def halves(ratios, shape, generator, roles):
        return torch.full((len(ratios), 2, 1, *shape[1:]), 0.5, dtype=dtype)

    mix = Mixer(halves, probability=0.5).sample(2, (4, 9, 9), generator)
    assert mix.masks.dtype == mix.ratios.dtype == torch.float32
