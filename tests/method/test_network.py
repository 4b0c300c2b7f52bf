"""MixMo around backbones of many families, and fusing."""

import pytest
import timm
import torch
from conftest import Plain
from torch import nn

import mixmo
from mixmo.errors import InputError

FAMILIES = {
    "wide_resnet16_1": 32, "preact_resnet18_1": 64, "resnet18": 64, "resnext50_32x4d": 64, "convnext_atto": 64,
    "efficientnet_b0": 64, "mobilenetv3_small_050": 64, "mobilenetv4_conv_small": 64, "regnetx_002": 64,
    "densenet121": 64, "hrnet_w18_small": 64, "pvt_v2_b0": 64, "ghostnet_050": 64, "mnasnet_small": 64,
    "dla46_c": 64, "poolformer_s12": 64, "edgenext_xx_small": 64, "mobilevit_xxs": 64, "rexnet_100": 64,
    "xception41": 96, "lcnet_035": 64, "mambaout_femto": 64, "hgnetv2_b0": 64, "ese_vovnet19b_dw": 64,
    "inception_next_tiny": 64, "vgg11": 64, "davit_tiny": 64,
}  # fmt: skip
"""Backbones that take images of any size, and the side to try them with."""

SIZED = {
    "vit_tiny_patch16_224": 64, "deit_tiny_patch16_224": 64, "swin_tiny_patch4_window7_224": 112,
    "mixer_s32_224": 64, "beit_base_patch16_224": 32, "xcit_nano_12_p16_224": 64, "maxvit_rmlp_pico_rw_256": 64,
    "coatnet_pico_rw_224": 64, "cait_xxs24_224": 64, "resmlp_12_224": 64, "twins_svt_small": 64,
    "eva02_tiny_patch14_224": 56,
}  # fmt: skip
"""Backbones built for a fixed size, set by ``img_size``."""

STANDARDISED = {"nf_resnet26": 64, "nf_regnet_b0": 64, "resnetv2_50x1_bit": 64}
"""Backbones whose stem standardises its weights, with a gain (the first two) or without."""

SEVERAL = {
    "repvgg_a0": 64,
    "mobileone_s0": 64,
    "repvit_m0_9": 64,
    "levit_128s": 224,
    "deit_tiny_distilled_patch16_224": 224,
}
"""Backbones with two stems (the first two) or two heads."""

ONE_EACH, TWO = (1, 1, 1, 1), {"depth": 2}
SHALLOW = {
    "vgg11": {"mlp_ratio": 0.05}, "resnext50_32x4d": {"layers": ONE_EACH}, "inception_next_tiny": {"depths": ONE_EACH},
    "densenet121": {"block_config": ONE_EACH}, "swin_tiny_patch4_window7_224": {"depths": ONE_EACH},
    "twins_svt_small": {"depths": ONE_EACH}, "beit_base_patch16_224": TWO, "cait_xxs24_224": TWO,
    "vit_tiny_patch16_224": TWO, "deit_tiny_patch16_224": TWO, "xcit_nano_12_p16_224": TWO,
    "eva02_tiny_patch14_224": TWO, "deit_tiny_distilled_patch16_224": TWO,
}  # fmt: skip
"""Options that leave out what lies between stem and head, where a backbone has such."""

CASES = [
    *((name, side, SHALLOW.get(name, {})) for name, side in (FAMILIES | STANDARDISED | SEVERAL).items()),
    *((name, side, {"img_size": side} | SHALLOW.get(name, {})) for name, side in SIZED.items()),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side", "options"), CASES, ids=[name for name, *_ in CASES])
def test_family(name, side, options):
    """Both modes, a gradient for every encoder and head, and fusing, also after use."""
    torch.manual_seed(0)
    net = mixmo.MixMo(name, num_members=2, num_classes=5, **options)
    parts = [[part for part in member.modules() if hasattr(part, "weight")] for member in (*net.encoders, *net.heads)]
    for head in parts[2] + parts[3]:  # some families start with a head of zeros, which lets no gradient through
        nn.init.normal_(head.weight, std=0.1)
    shape = net.encoder_shape(side, side)
    mix = mixmo.Mixer("linear", 2).sample(2, shape)  # on a map of 2×2 a rectangle can be empty
    logits = net(torch.randn(2, 2, 3, side, side), mix.masks)
    assert logits.shape == (2, 2, 5)
    mixmo.mixed_cross_entropy(logits, torch.tensor([[0, 1], [2, 3]]), mixmo.loss_weights(mix.ratios)).backward()
    assert len(net.encoders) == len(net.heads) == 2
    assert all(part.weight.grad.abs().sum() > 0 for member in parts for part in member)
    assert not torch.equal(parts[0][0].weight, parts[1][0].weight)

    images = torch.randn(2, 3, side, side)
    members = net.eval().members(images)  # with gradients: some backbones keep tensors of this graph
    assert members.shape == (2, 2, 5) and not torch.allclose(members[:, 0], members[:, 1])
    plain, reference = mixmo.fuse(net), timm.create_model(name, num_classes=5, **options).eval()
    assert type(plain) is type(reference)
    reference.load_state_dict(plain.state_dict())  # the backbone's own keys and shapes
    scale = members.abs().max()
    for fused in (plain, reference):
        torch.testing.assert_close(fused(images) / scale, members.mean(1) / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnetv2_50x1_bit", "repvgg_a0", "levit_128s", "dla46_c", "tiny_vit_5m_224"]
)
def test_averages_of_probabilities_fuse(name):
    """All heads become one layer, and timm can still build the backbone."""
    side, options = (224, {}) if name in ("levit_128s", "tiny_vit_5m_224") else (64, {})
    torch.manual_seed(0)
    net = mixmo.MixMo(name, num_members=3, num_classes=5, **options).eval()
    for head in net.heads:
        for part in head.modules():
            if hasattr(part, "weight"):
                nn.init.normal_(part.weight, std=0.1)
    images = torch.randn(2, 3, side, side)
    fused = mixmo.fuse(net, average="probabilities").eval()
    torch.testing.assert_close(fused(images).softmax(1), net.members(images).softmax(2).mean(1), atol=2e-5, rtol=1e-5)
    reference = timm.create_model(name, num_classes=15, **options).eval()
    reference.load_state_dict(fused.backbone.state_dict())
    torch.testing.assert_close(reference(images), fused.backbone(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnetv2_50x1_bit", "nf_regnet_b0", "repvgg_a0", "deit_tiny_distilled_patch16_224"]
)
def test_trained_backbones_of_every_kind_of_stem_start_out_as_they_were(name):
    backbone, side = timm.create_model(name, num_classes=6).eval(), 224 if "deit" in name else 64
    for parameter in backbone.get_classifier().parameters() if "deit" not in name else backbone.head.parameters():
        nn.init.normal_(parameter)
    net = mixmo.MixMo(backbone, num_members=3, trained=True).eval()
    images = torch.randn(2, 3, side, side)
    expected = backbone(images)
    for member in net.members(images).unbind(1):
        torch.testing.assert_close(member / expected.std(), expected / expected.std(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crossvit_tiny_240", "2 stems .* of different sizes, which cannot share a mask"),
        ("csatv2", "does not say which module is its stem; .* or use another backbone"),
        ("tresnet_m", "'tresnet_m' rearranges pixels of 3 channels into 48 before its stem"),
        ("naflexvit_base_patch16_gap", "stem 'embeds.proj' of NaFlexVit is a Linear without a convolution"),
        ("wide_resnet28_11", "unknown backbone 'wide_resnet28_11'; did you mean"),
    ],
)
def test_backbones_that_cannot_be_wrapped_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        mixmo.MixMo(name, num_members=2, num_classes=5)


@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_any_module_with_its_stem_and_head_named(members):
    own = Plain()
    before = {key: value.clone() for key, value in own.state_dict().items()}
    net = mixmo.MixMo(own, num_members=members, stem="first", head="last")
    assert (net.num_classes, net.in_chans) == (7, 3)
    assert net(torch.zeros(4, members, 3, 9, 9), torch.full((4, members, 1, 9, 9), 1 / members)).shape == (
        4,
        members,
        7,
    )
    images = torch.randn(4, 3, 9, 9)
    plain = mixmo.fuse(net)
    assert type(plain) is Plain
    torch.testing.assert_close(plain(images), net(images), atol=1e-5, rtol=1e-5)
    assert own.state_dict().keys() == before.keys()
    assert all(torch.equal(own.state_dict()[key], before[key]) for key in before)  # copied, not changed


def test_equal_masks_are_inference():
    net = mixmo.MixMo("wide_resnet10_1", num_members=3, num_classes=4).eval()
    images = torch.randn(2, 3, 32, 32)
    inputs = images[:, None].expand(2, 3, 3, 32, 32)
    equal = torch.full((2, 3, 1, 32, 32), 1 / 3)
    torch.testing.assert_close(net(inputs, equal), net.members(images))
    torch.testing.assert_close(net(inputs), net.members(images))


def test_masks_of_as_many_channels_as_features():
    net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=4).eval()
    inputs, masks = torch.randn(2, 2, 3, 32, 32), torch.rand(2, 2, 1, 32, 32)
    torch.testing.assert_close(net(inputs, masks), net(inputs, masks.expand(2, 2, 16, 32, 32)))


def test_members_are_drawn_as_separately_built_backbones():
    """The first member is the backbone, the others are those built after it with the same generator."""
    torch.manual_seed(0)
    built = [timm.create_model("resnet18", num_classes=7) for _ in range(3)]
    torch.manual_seed(0)
    net = mixmo.MixMo("resnet18", num_members=3, num_classes=7)
    for member, backbone in enumerate(built):
        assert torch.equal(net.encoders[member].weight, backbone.conv1.weight)
        assert torch.equal(net.heads[member].weight, backbone.fc.weight)


def test_members_of_a_module_are_independent_draws_of_its_spread():
    torch.manual_seed(0)
    own = Plain()
    nn.init.normal_(own.last.weight, mean=3.0, std=0.5)
    net = mixmo.MixMo(own, num_members=4, stem="first", head="last")
    assert torch.equal(net.heads[0].weight, own.last.weight)
    for part in (net.encoders, net.heads):
        numbers = torch.stack([module.weight.flatten() for module in part])
        assert numbers.std(1).tolist() == pytest.approx([numbers[0].std().item()] * 4, rel=0.35)
        assert numbers.corrcoef().fill_diagonal_(0).abs().max() < 0.45  # 56 or more numbers each
        assert len(numbers.unique()) == numbers.numel()  # a permutation would repeat the first member's numbers
    assert net.heads[3].weight.mean().item() == pytest.approx(3.0, abs=0.3)


def test_a_new_head_on_trained_weights_is_drawn_for_each_member():
    net = mixmo.MixMo("wide_resnet10_1", num_members=3, num_classes=5, trained=True)
    assert torch.equal(net.encoders[0].weight, net.encoders[1].weight)
    heads = torch.stack([head.weight for head in net.heads]).flatten(1)
    assert heads.corrcoef().fill_diagonal_(0).abs().max() < 0.3
    same = mixmo.MixMo("wide_resnet10_1", num_members=3, trained=True)  # as many classes as timm says
    assert torch.equal(same.heads[0].weight, same.heads[2].weight)
    own = mixmo.MixMo(Plain(), num_members=2, stem="first", head="last", trained=True, fresh_heads=True)
    assert torch.equal(own.encoders[0].weight, own.encoders[1].weight)
    assert not torch.isclose(own.heads[0].weight, own.heads[1].weight).any()


def test_a_checkpoint_of_timms_is_trained(tmp_path):
    torch.save(timm.create_model("wide_resnet10_1", num_classes=5).state_dict(), tmp_path / "weights.pth")
    options = {"num_classes": 5, "checkpoint_path": str(tmp_path / "weights.pth")}
    plain = timm.create_model("wide_resnet10_1", **options).eval()
    net = mixmo.MixMo("wide_resnet10_1", num_members=2, **options).eval()
    images = torch.randn(2, 3, 32, 32)
    for member in range(2):
        torch.testing.assert_close(net.members(images)[:, member], plain(images), atol=1e-5, rtol=1e-5)
    fresh = mixmo.MixMo("wide_resnet10_1", num_members=2, fresh_heads=True, **options)
    assert not torch.isclose(fresh.heads[0].weight, fresh.heads[1].weight).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_members": 0}, "num_members is 0"),
        ({"num_members": -3}, "num_members is -3"),
        ({"num_members": 2.0}, "num_members is 2.0; it must be an integer"),
        ({"num_members": "2"}, "num_members is '2'; it must be an integer"),
        ({"num_classes": 5.0}, "num_classes is 5.0; it must be an integer"),
        ({"num_classes": 0}, "num_classes is 0; it must be an integer of at least 1"),
        ({"stem": "stemm"}, "unknown stem module"),
        ({"head": "stages"}, "is a Sequential"),
        ({"stem": "fc"}, "without a convolution"),
        ({"depth": 12}, "depth is 12"),
        ({"colour": 1}, "cannot be built"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mixmo.MixMo("wide_resnet10_1", **{"num_classes": 5} | arguments)


def test_modules_say_what_they_lack():
    with pytest.raises(ValueError, match="backbone is of type int; it must be a timm name or a module"):
        mixmo.MixMo(5)
    with pytest.raises(ValueError, match="name it, as in mixmo"):
        mixmo.MixMo(Plain())
    with pytest.raises(ValueError, match="num_classes is 5, but"):
        mixmo.MixMo(Plain(), num_classes=5, stem="first", head="last")
    with pytest.raises(ValueError, match="drop_rate: these options are for timm names"):
        mixmo.MixMo(Plain(), stem="first", head="last", drop_rate=0.5)


@pytest.mark.parametrize(
    ("name", "mix_at", "side", "options"),
    [
        ("wide_resnet16_1", "stages.0", 32, {}),
        ("wide_resnet16_1", "stages.1.0", 32, {}),
        ("preact_resnet18_1", "stages.1", 32, {}),
        ("resnet18", "layer1", 64, {}),
        ("resnet18", "maxpool", 64, {}),
        ("convnext_atto", "stages.0", 64, {}),
        ("efficientnet_b0", "blocks.0", 64, {}),
        ("densenet121", "features.denseblock1", 64, {}),
    ],
)
def test_mixing_behind_a_later_module(name, mix_at, side, options):
    torch.manual_seed(0)
    net = mixmo.MixMo(name, num_members=2, num_classes=5, mix_at=mix_at, **options)
    features, height, width = net.encoder_shape(side, side)
    mask = torch.zeros(4, 2, 1, height, width)
    mask[:, 0, :, : height // 2] = 1
    mask[:, 1, :, height // 2 :] = 1
    logits = net(torch.randn(4, 2, 3, side, side), mask)
    assert logits.shape == (4, 2, 5)
    mixmo.mixed_cross_entropy(logits, torch.tensor([[0, 1], [2, 3], [1, 1], [4, 0]])).backward()
    assert all(p.grad is not None for part in (*net.encoders, *net.heads) for p in part.parameters())
    net.eval()
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        together = net.members(images)
        mixed = sum(encoder(images) for encoder in net.encoders)
        assert mixed.shape == (2, features, height, width)
        torch.testing.assert_close(net.backbone.core(mixed).unflatten(1, (2, 5)), together)
    with pytest.raises(ValueError, match="are not linear, so they cannot be summed"):
        mixmo.fuse(net)


def test_code_that_depends_on_training_mode_is_not_split():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.stage, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            x = self.stage(self.first(x))
            if self.training:
                x = x * 2
            return self.last(x.mean((2, 3)))

    for mode in (True, False):
        with pytest.raises(InputError, match="Noisy cannot be split after 'stage': its code depends on training mode"):
            mixmo.MixMo(Noisy().train(mode), stem="first", head="last", mix_at="stage")


def test_one_member_mixed_anywhere_is_the_backbone():
    """Splitting changes nothing: same weights, same logits, in training and in evaluation."""
    for mix_at in (None, "stages.0", "stages.1.0"):
        torch.manual_seed(3)
        net = mixmo.MixMo("wide_resnet16_1", num_members=1, num_classes=5, mix_at=mix_at)
        images = torch.linspace(-1, 1, 4 * 3 * 256).view(4, 3, 16, 16)
        logits = [net(images), net.eval()(images)]
        if mix_at is None:
            expected = logits
        for found, wanted in zip(logits, expected, strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("wide_resnet10_1", {"mix_at": "stages.7"}, "unknown module to mix at in WideResNet 'stages.7'; did you mean"),
        ("wide_resnet10_1", {"mix_at": "stages.0.0.conv1"}, "later modules also need"),
        ("wide_resnet10_1", {"mix_at": "stages.0", "trained": True}, "mix_at cannot be combined with a trained"),
        ("resnet18", {"mix_at": "layer1", "drop_rate": 0.5}, "leave out drop_rate"),
    ],
)
def test_where_a_backbone_cannot_be_cut(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        mixmo.MixMo(name, num_members=2, num_classes=5, **arguments)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 3, 32, 32), (2, 2, 1, 32, 32), (3, 32, 32)])
def test_inputs_of_a_wrong_shape_are_refused(shape):
    net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=4)
    with pytest.raises(ValueError, match="network takes"):
        net(torch.zeros(shape))


def test_masks_need_an_input_for_each_member():
    net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=4)
    with pytest.raises(ValueError, match=r"masks need inputs \(B, M, C, H, W\)"):
        net(torch.zeros(2, 3, 32, 32), torch.zeros(2, 2, 1, 32, 32))
    with pytest.raises(ValueError, match="masks have shape"):
        net(torch.zeros(2, 2, 3, 32, 32), torch.zeros(2, 2, 1, 16, 16))
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 4)  # a refused call leaves nothing behind
