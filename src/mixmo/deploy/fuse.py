"""Folding a trained network into the plain backbone, which deploys without mixmo."""

from __future__ import annotations

import copy

import timm
import torch
from torch import nn

from mixmo.errors import InputError
from mixmo.network import MixMo
from mixmo.stem import check_plain, summed

PLAIN_HEADS = (nn.Linear, nn.Conv2d, timm.layers.Linear)
"""Heads that are linear in their own weight and bias."""

USUAL_SIZES = ((32, 32), (64, 64), (224, 224), (256, 256), (384, 384))
"""Images to try a network with whose size is not known."""


def fuse(net: MixMo, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Fold a trained network into the plain backbone: same class, keys and cost; ``net`` stays as it is.

    At inference all members see one image, so the encoders, being linear, sum into one convolution, and
    the mean of the heads' logits is the logits of the mean head: W = Σ_i W_i at the stem, Σ_i W_i / M at
    the head, biases likewise. Both networks are shown a random image before the result is returned.

    Args:
        net: The network.
        image_size: (H, W) of that image; ``None`` takes what timm says of the backbone, or tries usual sizes.

    Returns:
        A new module with ``plain(images)`` = ``net(images).mean(1)`` up to rounding.

    Raises:
        InputError: if a stem is no plain convolution (it never is with ``mix_at``) or a head no plain layer, or the
            result would answer otherwise.

    Example:
        >>> net = MixMo("wide_resnet10_1", num_members=2, num_classes=10).eval()
        >>> images = torch.randn(4, 3, 32, 32)
        >>> bool(torch.allclose(fuse(net)(images), net(images).mean(1), atol=1e-5))
        True
    """
    if net.mix_at is not None:
        raise InputError(
            f"the encoders reach up to {net.mix_at!r} and are not linear, so that they cannot be summed; deploy the "
            "network as it is, or mix behind the stem (mix_at=None)."
        )
    check_plain(net.encoders, net.stem_name)
    for head in net.heads:
        if type(head) not in PLAIN_HEADS:
            raise InputError(
                f"head {net.head_name!r} is a {type(head).__name__}; heads can be averaged only where they are plain "
                "linear layers or convolutions."
            )
    plain = copy.deepcopy(net.backbone)
    plain.set_submodule(net.stem_name, _sum_of(net.encoders, scale=1.0))
    plain.set_submodule(net.head_name, _sum_of(net.heads, scale=1 / net.num_members))
    _check_fused(plain, net, image_size)
    return plain


@torch.no_grad()
def _check_fused(plain: nn.Module, net: MixMo, image_size: tuple[int, int] | None) -> None:
    """Refuse a fused network that answers a random image otherwise than the network it was made of."""
    weight = next(net.parameters())
    sizes = [image_size] if image_size else [net.image_size] if net.image_size else USUAL_SIZES
    reference, candidate = copy.deepcopy(net).eval(), copy.deepcopy(plain).eval()
    for height, width in sizes:
        image = torch.randn(1, net.in_chans, height, width, generator=torch.Generator().manual_seed(0))
        image = image.to(weight.device, weight.dtype)
        try:
            expected = reference(image).mean(1).float()
        except (RuntimeError, AssertionError, IndexError, ValueError):  # an image of another size than it takes
            continue
        difference = (candidate(image).float() - expected).abs().max()
        tolerance = 1e-3 if weight.dtype in (torch.float32, torch.float64) else 5e-2
        if difference > tolerance * (1 + expected.abs().max()):
            raise InputError(
                f"the fused network would answer otherwise: its logits for a random image differ by {difference:.3g}; "
                "something in the network is not what its class says (a hook, a changed forward)."
            )
        return
    raise InputError(
        f"the network takes no images of {' or '.join(f'{h}×{w}' for h, w in sizes)}, so that the fused one cannot be "
        "checked; name the size with image_size=(H, W)."
    )


@torch.no_grad()
def _sum_of(modules: nn.ModuleList, scale: float) -> nn.Module:
    """Return one module whose every parameter is ``scale`` times the modules' sum."""
    total = copy.deepcopy(modules[0])
    for name, parameter in summed(modules).items():
        total.get_parameter(name).copy_(parameter * scale)
    return total
