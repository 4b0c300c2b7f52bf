"""The stem: masks travel with the call, through checkpointing, hooks and threads."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from conftest import Plain
from threads import answers_of_threads

import mixmo


class Checkpointed(Plain):
    """Computes its stem again in the backward pass."""

    def forward(self, x):
        features = torch.utils.checkpoint.checkpoint(self.first, x, use_reentrant=self.reentrant)
        return self.last(features.relu().mean((2, 3)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_keeps_the_masks(reentrant):
    torch.manual_seed(0)
    own = Plain()
    again = Checkpointed()
    again.load_state_dict(own.state_dict())
    again.reentrant = reentrant
    inputs, gradients = torch.randn(4, 2, 3, 9, 9, requires_grad=True), []
    mask = (torch.arange(9) < 4).float().expand(4, 1, 1, 9, 9)
    for backbone in (own, again):
        torch.manual_seed(1)
        net = mixmo.MixMo(backbone, num_members=2, stem="first", head="last")
        net(inputs, torch.cat([mask, 1 - mask], 1)).square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


class Normalised(Plain):
    """Changes its input before its stem."""

    def forward(self, x):
        return super().forward((x - 0.5) / 0.25)


class InPlace(Plain):
    """Changes its input in place."""

    def forward(self, x):
        return super().forward(x.mul_(2))


class Shortened(Plain):
    """Passes only the first image to its stem."""

    def forward(self, x):
        return super().forward(x[:, :3])


class Jittered(Plain):
    """Changes its input in training only."""

    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x) if self.training else x)


class Sized(Plain):
    """Takes images of one size only, as vision transformers do, and changes them."""

    def forward(self, x):
        assert x.shape[-2:] == (224, 224)
        return super().forward(x * 2)


def wrapped(backbone, members=2):
    return mixmo.MixMo(backbone, num_members=members, stem="first", head="last")


@pytest.mark.parametrize("backbone", [Normalised, InPlace, Shortened, Jittered, Sized])
def test_a_backbone_that_changes_its_input_is_refused_when_it_is_built(backbone):
    """Masks are part of the input and must not be normalised. A compiled network would not notice."""
    for module in (backbone(), backbone().eval()):
        with pytest.raises(ValueError, match="the backbone changes its input before its stem"):
            wrapped(module)
    images = torch.randn(2, 1, 3, 224, 224)
    assert wrapped(backbone(), members=1)(images).shape == (2, 1, 7)  # whose images nothing travels with


class Padded(Plain):
    """Changes images of some sizes."""

    def forward(self, x):
        return super().forward(F.pad(x, (0, -x.shape[3] % 8, 0, -x.shape[2] % 8)))


class Late(Plain):
    """Changes its input in place from the second call on."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x if self.calls <= 2 else x.mul_(2))


def test_a_backbone_may_show_its_stem_a_copy():
    """Padding by zero pixels makes a copy; sizes that are padded are refused (below)."""
    torch.manual_seed(0)
    net, plain = wrapped(Padded()), Plain()
    plain.load_state_dict(mixmo.fuse(net, (16, 16)).state_dict())
    images = torch.randn(4, 3, 16, 16)
    masks = torch.full((4, 2, 1, 16, 16), 0.5)
    torch.testing.assert_close(net(images[:, None].expand(4, 2, 3, 16, 16), masks).mean(1), plain(images))


@pytest.mark.parametrize("backbone", [Padded, Late])
def test_every_call_of_an_eager_network_is_checked_too(backbone):
    net, masks = wrapped(backbone()), torch.full((4, 2, 1, 9, 9), 0.5)
    with pytest.raises(ValueError, match="the backbone changes its input before its stem"):
        net(torch.randn(4, 2, 3, 9, 9), masks)
    assert net(torch.randn(4, 3, 9, 9)).shape == (4, 7)


class Counting(Plain):
    """Has every kind of state: a counter, a copy of its input, random draws, a part in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.frozen = torch.nn.BatchNorm2d(8).eval()

    def forward(self, x):
        self.calls += 1
        self.seen = x.mean() + torch.rand(())
        return super().forward(x)


def test_the_trial_of_a_mixture_leaves_everything_as_it_was():
    plain, own, generators = Plain(), Counting(), []
    for backbone in (plain, own):  # the second draws as it is tried
        torch.manual_seed(0)
        net = wrapped(backbone)
        generators.append(torch.get_rng_state())
    assert torch.equal(*generators)
    assert net.backbone.calls == net.backbone.seen == 0
    assert net.backbone.training and not net.backbone.frozen.training
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_a_compiled_network_is_one_graph_and_computes_as_the_eager_one():
    torch.manual_seed(0)
    net = wrapped(Plain()).eval()
    inputs, mask = torch.randn(4, 2, 3, 9, 9), (torch.arange(9) < 4).float().expand(4, 1, 1, 9, 9)
    masks = torch.cat([mask, 1 - mask], 1)
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(inputs, masks), net(inputs, masks))


def test_a_stem_that_sees_no_whole_images_is_refused():
    with pytest.raises(ValueError, match="changes its input before its stem"):
        mixmo.MixMo("tnt_s_patch16_224", num_members=2, num_classes=5)


def test_hooks_of_a_stem_are_called_for_images_too():
    net = mixmo.MixMo(Plain(), num_members=2, stem="first", head="last")
    net.encoders[1].register_forward_hook(lambda module, inputs, output: output * 2)
    images = torch.randn(4, 3, 9, 9)
    torch.testing.assert_close(net.members(images), net(images[:, None].expand(4, 2, 3, 9, 9)))


def test_threads_share_a_network():
    """Images and mixtures with different masks from eight threads at once leave the module unchanged."""
    torch.manual_seed(0)
    net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=4).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    parameters = dict(net.named_parameters())
    assert answers_of_threads(net, 16, 200) == 200
    assert all(torch.equal(net.state_dict()[key], before[key]) for key in before)
    assert all(parameter is parameters[name] for name, parameter in net.named_parameters())
