"""Fuse a trained network into its plain backbone."""

from __future__ import annotations

import math
from typing import Literal

import timm
import torch
from torch import Tensor, nn

from mixmo.errors import InputError, one_of, reason
from mixmo.models.convolutions import is_supported, set_effective_weight
from mixmo.models.copying import copy_module
from mixmo.network import MixMo
from mixmo.stem import SIDES, summed_weights

PLAIN_HEADS = (nn.Linear, nn.Conv2d, timm.layers.Linear)
"""Heads that are linear in their own weight and bias."""

Average = Literal["logits", "probabilities"]


class ProbabilityAverage(nn.Module):
    """Averages the members' probabilities, given a plain backbone that outputs their M * K logits."""

    def __init__(self, backbone: nn.Module, num_members: int) -> None:
        super().__init__()
        self.backbone, self.num_members = backbone, num_members

    def forward(self, x: Tensor) -> Tensor:
        """Return the log (B, K) of the members' mean probabilities."""
        return log_mean_probabilities(self.backbone(x).unflatten(1, (self.num_members, -1)))


def log_mean_probabilities(logits: Tensor) -> Tensor:
    """Return log(1/M Σ_i softmax(logits_i)), (B, K), of the members' logits (B, M, K)."""
    return logits.log_softmax(2).logsumexp(1) - math.log(logits.shape[1])


def fuse(net: MixMo, image_size: tuple[int, int] | None = None, average: Average = "logits") -> nn.Module:
    """Fuse a trained network into a plain backbone with the original's class, keys and cost; ``net`` is unchanged.

    At inference all members see the same image. Encoders are linear, so they sum to one convolution; heads are linear,
    so the mean of their logits is the output of their mean: W = Σ_i W_i at the stem, Σ_i W_i / M at the head, and the
    same for biases. If a stem standardises its weights, W_i are the standardised ones. The outputs of both networks are
    compared on a random image.

    Args:
        net: The network.
        image_size: (H, W) of the random image; ``None`` is timm's size for the backbone, or tries common sizes.
        average: What the members' average is taken of: ``logits``, or ``probabilities`` (softmax, so not multi-label),
            for which the heads are concatenated to one layer with M * K outputs.

    Returns:
        A new module with ``plain(images)`` = ``net(images)`` up to rounding. For ``probabilities``, a
        :class:`ProbabilityAverage` with ``plain(images).softmax(1)`` = ``net.members(images).softmax(2).mean(1)``.

    Raises:
        InputError: if a stem is not a supported convolution (as with ``mix_at``), a head is not a plain layer, or the
            outputs differ.

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
        plain.set_submodule(name, _fuse_encoders(stem.encoders))
    for name, classifier in zip(net.head_names, net.classifiers, strict=True):
        plain.set_submodule(name, _fuse_heads(classifier.heads, average))
    if average == "probabilities":
        plain = ProbabilityAverage(plain, net.num_members)
    _check_fused(plain, net, image_size, average)
    return plain


def can_fuse(net: MixMo) -> bool:
    """Return whether a network's stems and heads can be fused."""
    try:
        _check_parts(net)
    except InputError:
        return False
    return True


def _check_parts(net: MixMo) -> None:
    """Refuse stems and heads that cannot be fused."""
    if not hasattr(net, "stem_names"):
        raise InputError(f"net is a {type(net).__name__}; pass the MixMo itself, such as net.module of a wrapper.")
    if net.mix_at is not None:
        raise InputError(
            f"the encoders extend to {net.mix_at!r} and are not linear, so they cannot be summed; deploy the network "
            "as it is, or mix after the stem (mix_at=None)."
        )
    for name, stem in zip(net.stem_names, net.stems, strict=True):
        for encoder in stem.encoders:
            if not is_supported(encoder):
                raise InputError(
                    f"stem {name!r} is a {type(encoder).__name__}; encoders can be summed only if the stem is a plain "
                    "convolution, or one that standardises its weights. Deploy the network as it is."
                )
    for name, classifier in zip(net.head_names, net.classifiers, strict=True):
        for head in classifier.heads:
            if type(head) not in PLAIN_HEADS:
                raise InputError(
                    f"head {name!r} is a {type(head).__name__}; heads can be averaged only if they are plain linear "
                    "layers or convolutions. Deploy the network as it is."
                )


@torch.no_grad()
def _check_fused(plain: nn.Module, net: MixMo, image_size: tuple[int, int] | None, average: Average) -> None:
    """Refuse a fused network whose output for a random image differs from the original's."""
    weight = next(net.parameters())
    size = image_size or net.image_size
    sizes, problem = [size] if size else [(side, side) for side in SIDES], ""
    original, fused = copy_module(net).eval(), copy_module(plain).eval()
    for height, width in sizes:
        image = torch.randn(1, net.in_chans, height, width, generator=torch.Generator().manual_seed(0))
        image = image.to(weight.device, weight.dtype)
        try:
            members = original.members(image).float()
        except (RuntimeError, AssertionError, IndexError, ValueError) as error:  # it may need another size
            problem = reason(error)
            continue
        expected = members.mean(1) if average == "logits" else log_mean_probabilities(members)
        difference = (fused(image).float() - expected).abs().max()
        tolerance = 1e-3 if weight.dtype in (torch.float32, torch.float64) else 5e-2
        if not difference <= tolerance * (1 + expected.abs().max()):  # also true for NaN
            raise InputError(
                f"the fused network is not equivalent: its logits for a random image differ by {difference:.3g}. "
                "Possible causes: a hook or a replaced forward, a non-linear operation after the heads (VOLO takes the "
                "largest logits of all patches), or a stem with standardised weights and no normalisation after it. "
                "Deploy the network as it is."
            )
        return
    raise InputError(
        f"the network does not accept images of {' or '.join(f'{h}×{w}' for h, w in sizes)} ({problem}), so the "
        "fused one cannot be checked; pass image_size=(H, W)."
    )


@torch.no_grad()
def _fuse_encoders(encoders: nn.ModuleList) -> nn.Module:
    """Return a convolution that computes the sum of the encoders' outputs."""
    total = copy_module(encoders[0])
    if len(encoders) > 1:
        weight, bias = summed_weights(encoders)
        set_effective_weight(total, weight)
        if bias is not None:
            total.bias.copy_(bias)  # type: ignore[union-attr, operator]
    return total


@torch.no_grad()
def _fuse_heads(heads: nn.ModuleList, average: Average) -> nn.Module:
    """Return one head with the mean of the heads' logits or, for probabilities, their concatenation."""
    fused = copy_module(heads[0])
    for name, parameter in list(fused.named_parameters()):
        weights: list[Tensor] = [head.get_parameter(name) for head in heads]
        weight = torch.stack(weights).mean(0) if average == "logits" else torch.cat(weights)
        setattr(fused, name, nn.Parameter(weight, parameter.requires_grad))
    size = "out_channels" if isinstance(fused, nn.Conv2d) else "out_features"
    setattr(fused, size, len(fused.weight))  # type: ignore[arg-type]
    return fused
