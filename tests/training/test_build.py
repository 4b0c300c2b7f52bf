"""Networks of runs as they are built.

Only CPUs with bfloat16 units need the padding of small feature maps: on others these tests pass without it.
"""

import copy

import pytest
import timm
import torch
from timm.layers import StdConv2d
from torch import nn
from torch.nn import functional as F

from mixmo import MixMo
from mixmo.training.build import pad_small_maps


def pad(net, x):
    """Pad small feature maps of a network; return the names of the convolutions before which they are."""
    with torch.no_grad(), pad_small_maps(net):
        net.eval()(x)
    net.train()
    return [name for name, each in net.named_modules() if each._forward_pre_hooks]


@pytest.mark.parametrize("convolution", [nn.Conv2d, StdConv2d])
def test_convolutions_larger_than_their_input_have_right_gradients(convolution):
    def measure(net, x):
        net.zero_grad()
        garbage = [torch.full((2 * net.backbone[2].weight.numel(),), 1e30) for _ in range(8)]
        del garbage  # gradients that are left uninitialised take this memory
        with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.float32):
            logits = net(x)
        F.cross_entropy(logits[:, 0].to(x.dtype), torch.arange(8) % 3).backward()
        return net.backbone[2].weight.grad

    x = torch.randn(8, 2, 3, 16, 16)
    layers = nn.Conv2d(3, 64, 3, padding=1), nn.AvgPool2d(16), convolution(64, 128, 3, stride=2, padding=1)
    plain = MixMo(nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 3)), 2, stem="0", head="4")
    net = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    assert pad(net, x) == ["backbone.2"]
    assert net.state_dict().keys() == plain.state_dict().keys()
    expected = measure(copy.deepcopy(plain).double(), x.double())
    for _ in range(5):
        assert (measure(net, x) - expected).norm() <= 0.1 * expected.norm()


def test_only_small_maps_are_padded():
    net = MixMo(timm.create_model("resnet18", in_chans=1, num_classes=3), 2)
    assert not pad(net, torch.randn(2, 2, 1, 96, 96))
    padded = pad(net, torch.randn(2, 2, 1, 16, 16))
    assert len(padded) == 11  # those of 3 × 3 behind the first of layer2, on maps of 2 × 2 and 1 × 1
    assert not any("encoders" in name or "layer1" in name or "downsample" in name for name in padded)
