"""Batches for a user's own loop: the trainer's draws, shapes, targets, and invalid input."""

import pytest
import torch
import torch.nn.functional as F

import mixmo
from mixmo.config.data_settings import DataSettings
from mixmo.data.batches import Augmentation
from mixmo.data.image_sets import DistinctBatch
from mixmo.errors import InputError
from mixmo.pixel_mixing import PixelMixer


def network(members=2, classes=5):
    return mixmo.MixMo("wide_resnet10_1", members, num_classes=classes, in_chans=1)


def numbered(count=8, side=6):
    """Image i has the value i everywhere, and class i % 5."""
    return torch.arange(count).float()[:, None, None, None].expand(count, 1, side, side).clone(), torch.arange(
        count
    ) % 5


@pytest.mark.parametrize("pixels", [None, "cutmix", "mixup"])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_a_batch_is_the_trainers(members, pixels):
    """The same generator gives the same mixtures: there is one implementation."""
    images = torch.randint(256, (8, 6, 6, 1), dtype=torch.uint8)
    own = DataSettings(batch_size=16, batch_repetition=2, channels=1, padding=0, flip=False, mean=[0.0], std=[1.0])
    mixer = mixmo.BatchMixer(network(members), batch_repetition=2, input_repetition=(0.5, 0.0), pixels=pixels)
    labels = torch.arange(8) % 5
    generator = torch.Generator().manual_seed(1)
    source = Augmentation(own).source(DistinctBatch(images, labels, torch.arange(8)), generator)
    theirs = mixer.mix(source, generator, progress=0.5)
    # Augmentation draws before the masks, so equal masks are only to be had from the same place of the generator.
    generator = torch.Generator().manual_seed(1)
    given = mixer((images / 255).permute(0, 3, 1, 2), labels, 0.5, generator)
    assert theirs.inputs.shape == given.inputs.shape == (16, members, 1, 6, 6)
    if pixels is None:
        torch.testing.assert_close(given.inputs, theirs.inputs)
        assert torch.equal(given.targets, theirs.targets) and torch.equal(given.shared, theirs.shared)
    for batch in (given, theirs):
        torch.testing.assert_close(batch.masks.sum(1), torch.ones(16, 1, 6, 6))
        torch.testing.assert_close(batch.weights, mixmo.loss_weights(batch.masks.mean((2, 3, 4))))


def test_targets_belong_to_the_images_and_input_repetition_follows_progress(generator):
    images, labels = numbered()
    mixer = mixmo.BatchMixer(network(), "cut", batch_repetition=4, input_repetition=(0.75, 0.25))
    for progress, least in ((0.0, 24), (0.5, 16), (1.0, 8)):
        batch = mixer(images, labels, progress, generator)
        shown = batch.inputs[:, :, 0, 0, 0].long()
        assert torch.equal(batch.targets, labels[shown])
        assert sorted(shown[:, 1].tolist()) == sorted([*range(8)] * 4)
        assert least <= int(batch.shared.sum()) < least + 8 and batch.shared[-least:].all()


def test_pixels_are_mixed_with_what_is_visible_as_targets(generator):
    images, labels = numbered(5)
    batch = mixmo.BatchMixer(network(), pixels=PixelMixer("cutmix", probability=1.0), probability=1.0)(
        images, labels, generator=generator
    )
    shown = F.one_hot(batch.inputs[:, :, 0].round().long(), 5).float()
    visible = (shown * batch.masks[:, :, 0, :, :, None]).sum((2, 3)) / batch.masks.sum((2, 3, 4))[..., None]
    filled = batch.masks.sum((2, 3, 4)) > 0
    torch.testing.assert_close(batch.targets[filled], visible[filled], atol=1e-5, rtol=0)


def test_a_step_can_be_compiled_while_input_repetition_changes():
    net, (images, labels) = network(), numbered()
    mixer = mixmo.BatchMixer(net, batch_repetition=2, input_repetition=(0.9, 0.5))

    def step(images, progress):
        torch.manual_seed(1)
        batch = mixer(images, labels, progress)
        return batch.loss(net(batch.inputs, batch.masks))

    compiled = torch.compile(step, backend="eager")
    for number in range(4):
        torch.testing.assert_close(compiled(images, number / 4), step(images, number / 4))


def test_logits_of_the_ensemble_are_refused_by_the_loss():
    net = network().eval()
    batch = mixmo.BatchMixer(net)(*numbered())
    with pytest.raises(InputError, match=r"logits have shape \(8, 5\); the loss takes the members' logits \(B, M, K\)"):
        batch.loss(net(numbered()[0]))


def test_soft_labels(generator):
    images, _ = numbered()
    labels = torch.rand(8, 5, generator=generator).softmax(1)
    batch = mixmo.BatchMixer(network())(images, labels, generator=generator)
    assert torch.equal(batch.targets, labels[batch.inputs[:, :, 0, 0, 0].long()])
    assert torch.isfinite(batch.loss(torch.randn(8, 2, 5)))


@pytest.mark.parametrize("pixels", [None, "mixup", "cutmix"])
def test_several_labels(generator, pixels):
    """The labels of image i are its binary digits; mixing in pixels mixes the labels with the same shares."""
    images = numbered()[0]
    labels = (torch.arange(8)[:, None] >> torch.arange(3)) & 1
    mixer = mixmo.BatchMixer(network(classes=3), "linear", pixels=pixels, multi_label=True, label_smoothing=0.1)
    batch = mixer(images, labels, generator=generator)
    assert batch.targets.shape == (8, 2, 3) and batch.targets.dtype == torch.float32
    if pixels is None:
        assert torch.equal(batch.targets, labels[batch.inputs[:, :, 0, 0, 0].long()].float())
    elif pixels == "mixup":  # an input's value is the sum of its labels' values, of two images as of one
        value = (batch.targets * torch.tensor([1.0, 2.0, 4.0])).sum(2)
        torch.testing.assert_close(batch.inputs.mean((2, 3, 4)), value)
        assert (batch.targets % 1 > 0).any()
    logits = torch.randn(8, 2, 3, generator=generator)
    smooth = 0.9 * batch.targets + 0.05
    each = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").sum(2)
    torch.testing.assert_close(batch.loss(logits), (each * batch.weights).sum(1).mean())
    with pytest.raises(InputError, match="labels have shape"):
        mixer(images, torch.arange(8) % 3)


def test_masks_and_losses_of_ones_own_are_functions(generator):
    def halves(ratios, shape, generator, roles):
        left = (torch.arange(shape[2], device=ratios.device) < shape[2] // 2).float()
        return torch.stack([left, 1 - left]).view(1, 2, 1, 1, -1).expand(len(ratios), 2, 1, *shape[1:])

    images, labels = numbered()
    seen = []

    def counting(logits, batch):
        seen.append(batch.inputs.shape)
        return logits.square().mean()

    mixer = mixmo.BatchMixer(network(), {halves: 0.5, "cut": 0.5}, probability=1.0, loss=counting)
    kinds = {bool((mixer(images, labels, generator=generator).masks[:, 0, 0, :, 0] == 1).all()) for _ in range(40)}
    batch = mixmo.BatchMixer(network(), halves, probability=1.0, loss=counting)(images, labels, generator=generator)
    assert kinds == {True, False} and torch.equal(batch.masks[:, 0, 0, 0, :3], torch.ones(8, 3))
    logits = torch.ones(8, 2, 5)
    assert batch.loss(logits).item() == 1 and seen == [(8, 2, 1, 6, 6)]


def spread(values, shape):
    return values[:, :, None, None, None].expand(-1, -1, 1, *shape[1:])


def drawn_elsewhere(ratios, shape):
    first = torch.rand(len(ratios), 1, 1, *shape[1:])
    return torch.cat([first, 1 - first], 1)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda ratios, shape, *_: ratios.new_full((len(ratios), 2, 1, *shape[1:]), 0.4), "sum to 0.8, not one"),
        (lambda ratios, shape, *_: ratios.new_ones(len(ratios), 2, *shape[1:]), "not masks of shape"),
        (lambda ratios: ratios, "'<lambda>' fails on maps of"),
        (lambda ratios, shape, *_: spread(2 * ratios**2, shape), "sum to 1.11"),  # one only for equal ratios
        (lambda ratios, shape, _, roles: spread(ratios * (0.3 + 0.35 * roles.dim()), shape), "sum to 0.65"),
        (lambda ratios, shape, *_: drawn_elsewhere(ratios, shape), "random numbers from elsewhere"),
    ],
)
def test_masks_of_ones_own_that_break_the_conventions_are_refused(mask, message):
    images, labels = numbered()
    with pytest.raises(InputError, match=message):
        mixmo.BatchMixer(network(), mask)(images, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "cute"}, "did you mean 'cut'"),
        ({"probability": 1.5}, "probability is 1.5"),
        ({"root": 0.0}, "root is 0.0"),
        ({"batch_repetition": 1.5}, "batch_repetition is 1.5; it is a whole number"),
        ({"input_repetition": (0.9, 0.5, 0.1)}, "it is a number, or a pair for start and end"),
        ({"input_repetition": "0.5"}, "it is a number, or a pair for start and end"),
        ({"class_weights": "balanced"}, "class_weights 'balanced' are no numbers"),
        ({"class_weights": [1.0, 1.0, 1.0, 1.0, float("inf")]}, "they must be 5 positive numbers"),
        ({"batch_repetition": 0}, "batch_repetition is 0"),
        ({"input_repetition": 1.0}, "input_repetition is 1"),
        ({"input_repetition": (0.5, 2.0)}, "input_repetition is 2.0"),
        ({"pixels": "blend"}, "unknown pixels.kind 'blend'"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"label_smoothing": 0.1, "loss": lambda *_: None}, "a custom loss must smooth targets itself"),
        ({"net": torch.nn.DataParallel(network())}, "net is a DataParallel; pass the MixMo itself"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(mixmo.errors.InputError, match=message):
        mixmo.BatchMixer(**{"net": network(), **options})


@pytest.mark.parametrize("progress", [-0.1, 1.5, 100])
def test_progress_is_a_share(progress):
    """An epoch's number would mix linearly without a word."""
    with pytest.raises(InputError, match=f"progress is {progress}; it is the share"):
        mixmo.BatchMixer(network())(*numbered(), progress=progress)


@pytest.mark.parametrize("pixels", [None, "cutmix"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.bool])
def test_class_numbers_are_of_any_integer_type(dtype, pixels):
    images, labels = numbered()
    losses = []
    for each in (labels.to(dtype), labels.to(dtype).long()):
        batch = mixmo.BatchMixer(network(), pixels=pixels)(images, each, generator=torch.Generator().manual_seed(0))
        losses.append(batch.loss(torch.linspace(0, 1, 8 * 2 * 5).view(8, 2, 5)))
    assert torch.equal(*losses)
    with pytest.raises(InputError, match="range from 0 to 4"):
        mixmo.BatchMixer(network(), pixels=pixels)(images, labels + 1).loss(torch.zeros(8, 2, 5))


@pytest.mark.parametrize("pixels", [None, "mixup", "cutmix"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_other_precisions(dtype, pixels):
    net, (images, labels) = network().to(dtype), numbered()
    batch = mixmo.BatchMixer(net, pixels=pixels)(images.to(dtype), labels, generator=torch.Generator().manual_seed(0))
    assert batch.inputs.dtype == dtype and batch.masks.dtype == torch.float32
    assert batch.loss(net(batch.inputs, batch.masks)).isfinite()


def test_a_network_with_auxiliary_outputs_is_named():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.fc = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Linear(4, 5)

        def forward(self, images):
            logits = self.fc(self.conv1(images).mean((2, 3)))
            return (logits, logits) if self.training else logits

    net = mixmo.MixMo(Two(), stem="conv1", head="fc")
    batch = mixmo.BatchMixer(net)(*numbered())
    with pytest.raises(InputError, match="the backbone returns a tuple; it must return a tensor of logits"):
        net(batch.inputs, batch.masks)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(4, 3, 6, 6), torch.zeros(4, dtype=torch.long), r"takes floating-point images \(U, 1, H, W\)"),
        (torch.zeros(4, 1, 6, 6, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), "torch.uint8"),
        (torch.zeros(4, 1, 6, 6), torch.zeros(3, dtype=torch.long), "labels have shape"),
        (torch.zeros(4, 1, 6, 6), torch.zeros(4, 4), "probabilities"),
        (torch.zeros(4, 1, 6, 6), torch.zeros(4), r"labels have shape \(4,\) and type torch.float32"),
        (torch.zeros(4, 1, 6, 6), torch.ones(4, 5), "sum to .* but probabilities sum to one; .* multi_label=True"),
    ],
)
def test_wrong_batches_are_refused(images, labels, message):
    with pytest.raises(mixmo.errors.InputError, match=message):
        mixmo.BatchMixer(network())(images, labels)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"pixels": "cutmix"}])
def test_class_weights_are_factors_of_the_loss(options, generator):
    images, labels = numbered()
    factors = [0.5, 2.0, 1.0, 1.0, 0.5]
    mixer = mixmo.BatchMixer(network(), class_weights=factors, **options)
    batch, logits = mixer(images, labels, generator=generator), torch.randn(8, 2, 5, generator=generator)
    smoothing = options.get("label_smoothing", 0.0)
    expected = mixmo.mixed_cross_entropy(logits, batch.targets, batch.weights, smoothing, torch.tensor(factors))
    assert torch.equal(batch.loss(logits), expected)
    assert not torch.equal(expected, mixmo.mixed_cross_entropy(logits, batch.targets, batch.weights, smoothing))


@pytest.mark.parametrize("factors", [[1.0] * 4, [1.0, 1.0, 1.0, 1.0, 0.0], [[1.0] * 5]])
def test_class_weights_are_one_positive_number_for_each_class(factors):
    with pytest.raises(ValueError, match=r"class_weights are .*; they must be 5 positive"):
        mixmo.BatchMixer(network(), class_weights=factors)
    with pytest.raises(ValueError, match="a custom loss must weight classes itself"):
        mixmo.BatchMixer(network(), class_weights=[1.0] * 5, loss=lambda logits, batch: logits.sum())


def test_labels_out_of_range_and_single_outputs_are_refused():
    images, _ = numbered()
    mixer = mixmo.BatchMixer(network(), multi_label=True)
    with pytest.raises(InputError, match="labels range from -1 to 1; values of classes are 0 to 1"):
        mixer(images, torch.tensor([[1, 0, -1, 0, 0]] * len(images)))
    with pytest.raises(InputError, match="net has one class, for which the loss is always 0"):
        mixmo.BatchMixer(mixmo.MixMo("wide_resnet10_1", 2, num_classes=1))
