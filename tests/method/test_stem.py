"""The stem: masks travel with the call, through checkpointing, hooks and threads."""

import pytest
import torch
import torch.utils.checkpoint
from conftest import Plain, answers_of_threads

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


class Shortened(Plain):
    """Shows its stem the first image only."""

    def forward(self, x):
        return super().forward(x[:, :3])


@pytest.mark.parametrize("backbone", [Normalised, Shortened])
def test_a_backbone_that_changes_its_input_takes_no_mixtures(backbone):
    """Masks travel in it: they are no pixels to be normalised."""
    net = mixmo.MixMo(backbone(), num_members=2, stem="first", head="last")
    masks = torch.full((4, 2, 1, 9, 9), 0.5)
    with pytest.raises(ValueError, match="the backbone changes its input before its stem"):
        net(torch.randn(4, 2, 3, 9, 9), masks)
    assert net(torch.randn(4, 3, 9, 9)).shape == (4, 7)
    single = mixmo.MixMo(backbone(), num_members=1, stem="first", head="last")
    assert single(torch.randn(4, 1, 3, 9, 9)).shape == (4, 1, 7)


def test_a_stem_that_sees_no_whole_images_is_refused():
    net = mixmo.MixMo("tnt_s_patch16_224", num_members=2, num_classes=5)
    with pytest.raises(ValueError, match="changes its input before its stem"):
        net(torch.zeros(2, 2, 3, 224, 224), torch.full((2, 2, 1, 56, 56), 0.5))


def test_hooks_of_a_stem_are_called_for_images_too():
    net = mixmo.MixMo(Plain(), num_members=2, stem="first", head="last")
    net.encoders[1].register_forward_hook(lambda module, inputs, output: output * 2)
    images = torch.randn(4, 3, 9, 9)
    torch.testing.assert_close(net.members(images), net(images[:, None].expand(4, 2, 3, 9, 9)))


def test_threads_share_a_network():
    """Images and mixtures with masks of their own, from eight threads at once; the module is what it was."""
    torch.manual_seed(0)
    net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=4).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    parameters = dict(net.named_parameters())
    assert answers_of_threads(net, 16, 200) == 200
    assert all(torch.equal(net.state_dict()[key], before[key]) for key in before)
    assert all(parameter is parameters[name] for name, parameter in net.named_parameters())
