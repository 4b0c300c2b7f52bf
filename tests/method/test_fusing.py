"""Fusing and its refusals; for every family in test_network.py, without mixmo in deploy/test_export.py."""

import pytest
import timm
import torch
from conftest import Plain
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mixmo


class ScaledConv(nn.Conv2d):
    """A convolution that is not linear in its weight."""

    def forward(self, x):
        return super().forward(x) * self.weight.std()


class CosineHead(nn.Linear):
    """A head that is not linear in its weight."""

    def forward(self, x):
        return nn.functional.linear(x, nn.functional.normalize(self.weight, dim=1))


@pytest.mark.parametrize(("part", "name"), [(ScaledConv(3, 8, 3, padding=1), "first"), (CosineHead(8, 7), "last")])
def test_subclasses_of_plain_layers_are_not_fused(part, name):
    own = Plain()
    setattr(own, name, part)
    net = mixmo.MixMo(own, num_members=2, stem="first", head="last")
    with pytest.raises(ValueError, match=type(part).__name__):
        mixmo.fuse(net)


def test_a_fused_network_that_answers_otherwise_is_not_returned():
    net = mixmo.MixMo(Plain(), num_members=2, stem="first", head="last")
    net.heads[1].register_forward_hook(lambda module, inputs, output: output.square())
    with pytest.raises(ValueError, match="is not equivalent: its logits"):
        mixmo.fuse(net)


def test_fusing_needs_an_image_that_the_network_takes():
    class Picky(Plain):
        def forward(self, x):
            assert x.shape[-1] == 17
            return super().forward(x)

    net = mixmo.MixMo(Picky(), num_members=2, stem="first", head="last")
    with pytest.raises(ValueError, match="image_size="):
        mixmo.fuse(net)
    images = torch.randn(2, 3, 17, 17)
    torch.testing.assert_close(mixmo.fuse(net, (17, 17))(images), net(images), atol=1e-5, rtol=1e-5)


def test_fusing_leaves_the_network_as_it_is():
    net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=4).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    plain = mixmo.fuse(net)
    with torch.no_grad():
        plain.conv_stem.weight.zero_()
        plain.stages[0][0].conv1.weight.zero_()
    assert all(torch.equal(net.state_dict()[key], before[key]) for key in before)


@pytest.mark.parametrize("name", ["resnet18", "nf_regnet_b0", "repvgg_a0", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("members", [1, 5])
def test_a_fused_network_costs_what_the_backbone_costs(name, members):
    """Exactly as many parameters and multiply-adds."""
    plain = mixmo.fuse(mixmo.MixMo(name, num_members=members, num_classes=7))
    found = []
    for net in (plain, timm.create_model(name, num_classes=7)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net.eval()(torch.zeros(1, 3, 224, 224))
        found.append((counter.get_total_flops(), [parameter.shape for parameter in net.parameters()]))
    assert found[0] == found[1] and found[0][0] > 0


def test_an_unknown_average_is_refused():
    with pytest.raises(ValueError, match="unknown average 'votes'"):
        mixmo.fuse(mixmo.MixMo(Plain(), num_members=2, stem="first", head="last"), average="votes")
