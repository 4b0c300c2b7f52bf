"""timm's helpers treat the wrapper like its backbone; timm is the oracle."""

import re

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

import mixmo
from mixmo.config.settings import OptimizerSettings
from mixmo.errors import InputError
from mixmo.training.optimizers import build_optimizer

NAMES = ["resnet10t", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "cait_xxs24_224", "swin_tiny_patch4_window7_224"]


@pytest.fixture(scope="module", params=NAMES)
def net(request):
    return mixmo.MixMo(request.param, num_members=2, num_classes=5)


def groups(optimizer, named):
    """Return an optimiser's groups: learning rate, weight decay and names of parameters."""
    names = {id(parameter): name.removeprefix("backbone.") for name, parameter in named}
    return [
        (group.get("lr_scale"), group["weight_decay"], sorted(names[id(each)] for each in group["params"]))
        for group in optimizer.param_groups
    ]


def test_images_are_prepared_as_for_the_backbone(net):
    assert resolve_data_config({}, model=net) == resolve_data_config({}, model=net.backbone)
    assert net.pretrained_cfg == net.default_cfg == net.backbone.pretrained_cfg
    if net.pretrained_cfg["architecture"] == "tf_efficientnet_lite0":
        assert resolve_data_config({}, model=net)["mean"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("options", [{}, {"layer_decay": 0.75}])
def test_optimisers_group_parameters_as_for_the_backbone(net, options):
    made = [create_optimizer_v2(each, "adamw", lr=1.0, weight_decay=0.1, **options) for each in (net, net.backbone)]
    one, other = (groups(each, net.named_parameters()) for each in made)
    assert one == other and len(one) > 1
    if net.pretrained_cfg["architecture"] == "vit_tiny_patch16_224":
        (decay,) = {decay for _, decay, names in one if "pos_embed" in names}
        assert decay == 0 and len(one) == (2 * (1 + 12 + 1) if options else 2)  # stem, blocks, head


@pytest.mark.parametrize("coarse", [False, True])
def test_layers_are_those_of_the_backbone(net, coarse):
    layers = group_parameters(net, net.group_matcher(coarse=coarse), reverse=True)
    theirs = group_parameters(net.backbone, net.backbone.group_matcher(coarse=coarse), reverse=True)
    assert {name.removeprefix("backbone."): layer for name, layer in layers.items()} == theirs


def test_checkpointing_reaches_the_backbone_and_changes_no_logits():
    net = mixmo.MixMo("vit_tiny_patch16_224", num_members=2, num_classes=5, img_size=32, patch_size=8).train()
    inputs = torch.randn(2, 2, 3, 32, 32)
    expected = net(inputs)
    net.set_grad_checkpointing(True)
    assert net.backbone.grad_checkpointing and torch.allclose(net(inputs), expected, atol=1e-6)


def test_a_module_of_ones_own_has_none_of_it():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    net = mixmo.MixMo(module, num_members=2, stem="0", head="3")
    for name in ("pretrained_cfg", "default_cfg", "no_weight_decay", "group_matcher", "set_grad_checkpointing", "xyz"):
        assert not hasattr(net, name)
    with pytest.raises(AttributeError):
        timm.data.resolve_data_config({}, model=net).missing  # noqa: B018
    copied = torch.load(_saved(net), weights_only=False)  # pickling asks a bare object for attributes
    assert copied.num_members == 2


def _saved(net):
    import io

    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return file


def test_layers_of_our_backbones_are_their_blocks():
    """One learning rate for a block, whatever the number of members; the stem's is the lowest."""
    for members in (1, 2, 4):
        net = mixmo.MixMo("wide_resnet10_1", members, num_classes=5)
        optimizer = build_optimizer(net.backbone, OptimizerSettings(layer_decay=0.5), 1.0)
        rates = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
        named = [each for each in net.backbone.named_parameters() if not each[0].startswith("fc")]
        found = {(re.match(r"conv_stem|norm|stages\.\d\.\d", name)[0], rates[id(each)]) for name, each in named}
        blocks = {("conv_stem", 1 / 16), *((f"stages.{stage}.0", 2**stage / 8) for stage in range(3)), ("norm", 1 / 2)}
        assert found == blocks
    with pytest.raises(InputError, match="layer_decay needs the layers of Linear, which has no method group_matcher"):
        build_optimizer(torch.nn.Linear(2, 2), OptimizerSettings(layer_decay=0.5), 1.0)
