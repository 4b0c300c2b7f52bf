"""``fuse``: fold a trained network into its plain backbone."""

from __future__ import annotations

import math
from typing import Literal

import timm
import torch
from torch import Tensor, nn

from mixmo.errors import InputError, one_of
from mixmo.models.convolutions import is_known, set_effective_weight
from mixmo.models.copying import copy_module
from mixmo.network import MixMo
from mixmo.stem import SIDES, summed_weights

PLAIN_HEADS = (nn.Linear, nn.Conv2d, timm.layers.Linear)
"""Heads that are linear in their own weight and bias."""

Average = Literal["logits", "probabilities"]


class ProbabilityAverage(nn.Module):
    """Averages the probabilities of members whose logits are a plain backbone's M * K outputs."""

    def __init__(self, backbone: nn.Module, num_members: int) -> None:
        super().__init__()
        self.backbone, self.num_members = backbone, num_members

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithm (B, K) of the mean over the members of their probabilities."""
        return log_mean_probabilities(self.backbone(x).unflatten(1, (self.num_members, -1)))


def log_mean_probabilities(logits: Tensor) -> Tensor:
    """Return log (1/M Σ_i softmax(logits_i)), (B, K), of the members' logits (B, M, K)."""
    return logits.log_softmax(2).logsumexp(1) - math.log(logits.shape[1])


def fuse(net: MixMo, image_size: tuple[int, int] | None = None, average: Average = "logits") -> nn.Module:
    """Fold a trained network into the plain backbone: same class, keys and cost; ``net`` stays as it is.

    At inference all members see one image, so the encoders, being linear, sum into one convolution, and
    the mean of the heads' logits is the logits of the mean head: W = Σ_i W_i at the stem, Σ_i W_i / M at
    the head, and the same for biases. Where a stem standardises its weights, W_i are those that it applies. Both
    networks are shown a random image before the result is returned.

    Args:
        net: The network.
        image_size: (H, W) of that image; ``None`` takes timm's size for the backbone, or tries usual ones.
        average: ``logits``, or ``probabilities`` of the members (softmax, so not for several labels): the heads then
            become one layer of M * K outputs.

    Returns:
        A new module with ``plain(images)`` = ``net(images)`` up to rounding. For ``probabilities`` a
        :class:`ProbabilityAverage` of the backbone, with ``plain(images).softmax(1)`` =
        ``net.members(images).softmax(2).mean(1)``.

    Raises:
        InputError: if a stem is not a known convolution (with ``mix_at`` it never is), a head is not a plain layer, or
            the result would answer otherwise.

    Example:
        >>> net = MixMo("wide_resnet10_1", num_members=2, num_classes=10).eval()
        >>> images = torch.randn(4, 3, 32, 32)
        >>> bool(torch.allclose(fuse(net)(images), net(images), atol=1e-5))
        True
    """
    one_of(average, ("logits", "probabilities"), "average")
    _check_parts(net)
    plain = copy_module(net.backbone)
    for name, stem in zip(net.stem_names, net.stems, strict=True):
        plain.set_submodule(name, _sum_of(stem.encoders))
    for name, classifier in zip(net.head_names, net.classifiers, strict=True):
        plain.set_submodule(name, _join(classifier.heads, average))
    if average == "probabilities":
        plain = ProbabilityAverage(plain, net.num_members)
    _check_fused(plain, net, image_size, average)
    return plain


def can_fuse(net: MixMo) -> bool:
    """Return whether a network's stems and heads can be folded."""
    try:
        _check_parts(net)
    except InputError:
        return False
    return True


def _check_parts(net: MixMo) -> None:
    """Refuse stems and heads that cannot be folded."""
    if net.mix_at is not None:
        raise InputError(
            f"the encoders reach up to {net.mix_at!r} and are not linear, so that they cannot be summed; deploy the "
            "network as it is, or mix behind the stem (mix_at=None)."
        )
    for name, stem in zip(net.stem_names, net.stems, strict=True):
        for encoder in stem.encoders:
            if not is_known(encoder):
                raise InputError(
                    f"stem {name!r} is a {type(encoder).__name__}; encoders can be summed only where the stem is a "
                    "plain convolution, or one that standardises its weights. Deploy the network as it is."
                )
    for name, classifier in zip(net.head_names, net.classifiers, strict=True):
        for head in classifier.heads:
            if type(head) not in PLAIN_HEADS:
                raise InputError(
                    f"head {name!r} is a {type(head).__name__}; heads can be averaged only where they are plain linear "
                    "layers or convolutions. Deploy the network as it is."
                )


@torch.no_grad()
def _check_fused(plain: nn.Module, net: MixMo, image_size: tuple[int, int] | None, average: Average) -> None:
    """Refuse a fused network whose output for a random image differs from the original's."""
    weight = next(net.parameters())
    known = image_size or net.image_size
    sizes = [known] if known else [(side, side) for side in SIDES]
    reference, candidate = copy_module(net).eval(), copy_module(plain).eval()
    for height, width in sizes:
        image = torch.randn(1, net.in_chans, height, width, generator=torch.Generator().manual_seed(0))
        image = image.to(weight.device, weight.dtype)
        try:
            members = reference.members(image).float()
        except (RuntimeError, AssertionError, IndexError, ValueError):  # it takes images of another size
            continue
        expected = members.mean(1) if average == "logits" else log_mean_probabilities(members)
        difference = (candidate(image).float() - expected).abs().max()
        tolerance = 1e-3 if weight.dtype in (torch.float32, torch.float64) else 5e-2
        if not difference <= tolerance * (1 + expected.abs().max()):  # NaN does not agree
            raise InputError(
                f"the fused network would answer otherwise: its logits for a random image differ by {difference:.3g}; "
                "something in the network differs from its class (a hook, a changed forward), what follows its "
                "heads is not linear (VOLO takes the largest logits of all patches), or its stem standardises weights "
                "and no normalisation follows. Deploy the network as it is."
            )
        return
    raise InputError(
        f"the network takes no images of {' or '.join(f'{h}×{w}' for h, w in sizes)}, so that the fused one cannot be "
        "checked; name the size with image_size=(H, W)."
    )


@torch.no_grad()
def _sum_of(encoders: nn.ModuleList) -> nn.Module:
    """Return the one convolution that is the sum of the encoders."""
    total = copy_module(encoders[0])
    if len(encoders) > 1:
        weight, bias = summed_weights(encoders)
        set_effective_weight(total, weight)
        if bias is not None:
            total.bias.copy_(bias)  # type: ignore[union-attr, operator]
    return total


@torch.no_grad()
def _join(heads: nn.ModuleList, average: Average) -> nn.Module:
    """Return one head whose logits are the mean of the heads', or, for probabilities, one after the other."""
    joined = copy_module(heads[0])
    for name, parameter in list(joined.named_parameters()):
        own: list[Tensor] = [head.get_parameter(name) for head in heads]
        values = torch.stack(own).mean(0) if average == "logits" else torch.cat(own)
        setattr(joined, name, nn.Parameter(values, parameter.requires_grad))
    size = "out_channels" if isinstance(joined, nn.Conv2d) else "out_features"
    setattr(joined, size, len(joined.weight))  # type: ignore[arg-type]
    return joined
