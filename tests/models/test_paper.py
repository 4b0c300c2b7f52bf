"""The paper's networks: sizes, structure, initial weights."""

import pytest
import timm
import torch
from torch import nn

import mixmo  # noqa: F401  (registers the models)

# Trainable parameters, counted by hand from the definition for K classes:
# stem 27F; each block 2 BN + two 3×3 (+ 1×1 shortcut); last BN; head.


def wide_resnet_parameters(depth, width, classes):
    total, channels = 27 * 16, 16
    for stage, base in enumerate((16, 32, 64)):
        out = base * width
        for block in range((depth - 4) // 6):
            total += 2 * channels + 9 * channels * out + 2 * out + 9 * out * out
            if channels != out or (stage and not block):
                total += channels * out
            channels = out
    return total + 2 * channels + (channels + 1) * classes


@pytest.mark.parametrize(
    "depth_width", ["10_1", "10_2", "16_1", "16_2", "16_4", "16_8", "28_2", "28_4", "28_10", "40_4"]
)
def test_wide_resnet_has_the_published_size(depth_width):
    with torch.device("meta"):
        net = timm.create_model(f"wide_resnet{depth_width}", num_classes=100)
    depth, width = map(int, depth_width.split("_"))
    assert sum(p.numel() for p in net.parameters()) == wide_resnet_parameters(depth, width, 100)
    convolutions = sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in net.modules())
    assert convolutions == depth - 3  # the stem and two for each block; shortcuts are 1×1


def test_wide_resnet28_10_has_36_million_parameters():
    with torch.device("meta"):
        net = timm.create_model("wide_resnet28_10", num_classes=100)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(36.5e6, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2, 3])
def test_preact_resnet_shapes(width):
    net = timm.create_model(f"preact_resnet18_{width}", num_classes=7).eval()
    assert net.conv_stem(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 32, 32)
    assert net.forward_features(torch.zeros(1, 3, 64, 64)).shape == (1, 512 * width, 4, 4)
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert isinstance(net.norm, nn.Identity)


@pytest.mark.parametrize("name", ["wide_resnet16_2", "preact_resnet18_1"])
def test_initial_weights(name):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=200)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and name.startswith("wide")):
            std = (2 / module.weight[0].numel()) ** 0.5
            assert module.weight.abs().max() <= 2 * std / 0.87962 + 1e-6
            assert module.weight.std().item() == pytest.approx(std, rel=0.1)
        elif isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.05)
        if isinstance(module, nn.Linear):
            assert (module.bias == 0).all()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


def test_any_depth_and_width():
    assert timm.create_model("wide_resnet", depth=22, width=3, num_classes=4)(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    for options, message in [({"depth": 12}, "6n"), ({"depth": 4}, "6n"), ({"width": 0}, "width is 0")]:
        with pytest.raises(ValueError, match=message):
            timm.create_model("wide_resnet", **options)


def test_timm_conventions():
    net = timm.create_model("wide_resnet10_1", num_classes=10, in_chans=1, drop_rate=0.3)
    assert net.pretrained_cfg["first_conv"] == "conv_stem" and net.pretrained_cfg["classifier"] == "fc"
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    net.reset_classifier(3)
    assert net.get_classifier().out_features == 3
    net.reset_classifier(0)
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, net.num_features)
