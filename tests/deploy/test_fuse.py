"""What is fused, and what is refused (that every family fuses is in method/test_network.py)."""

import pytest
import torch
from conftest import Plain
from torch import nn

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
    with pytest.raises(ValueError, match="would answer otherwise: its logits"):
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
    torch.testing.assert_close(mixmo.fuse(net, (17, 17))(images), net(images).mean(1), atol=1e-5, rtol=1e-5)


def test_fusing_leaves_the_network_as_it_is():
    net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=4).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    plain = mixmo.fuse(net)
    with torch.no_grad():
        plain.conv_stem.weight.zero_()
        plain.stages[0][0].conv1.weight.zero_()
    assert all(torch.equal(net.state_dict()[key], before[key]) for key in before)
