"""Effective weights of stem convolutions.

Three kinds are supported: plain convolutions; those that standardise their weights, as in BiT's ResNets (Qiao et al.
2019); and those that then multiply them by a gain, as in NFNets (Brock et al. 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame, pad_same
from torch import Tensor, nn

PLAIN = (nn.Conv2d, Conv2dSame)
STANDARDISED = (StdConv2d, StdConv2dSame)
SCALED = (ScaledStdConv2d, ScaledStdConv2dSame)


def is_supported(module: nn.Module) -> bool:
    """Return whether a module is one of these convolutions, padded with zeros and without hooks.

    Example:
        >>> is_supported(nn.Conv2d(3, 8, 3)), is_supported(nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"))
        (True, False)
    """
    if type(module) not in (*PLAIN, *STANDARDISED, *SCALED) or getattr(module, "padding_mode", "") != "zeros":
        return False
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def effective_weight(conv: nn.Module) -> Tensor:
    """Return the weights (F, C, h, w) that a supported convolution applies.

    Standardised weights are (w - mean) / sqrt(var + eps) over each of the F filters, times gain and scale if any.
    """
    weight: Tensor = conv.weight  # type: ignore[assignment]
    if type(conv) in PLAIN:
        return weight
    variance, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
    standard = (weight - mean) * torch.rsqrt(variance + conv.eps)  # type: ignore[operator]
    if type(conv) in STANDARDISED:
        return standard
    return standard * (conv.gain * conv.scale)  # type: ignore[operator]


@torch.no_grad()
def set_effective_weight(conv: nn.Module, target: Tensor) -> None:
    """Set the weights (F, C, h, w) that a supported convolution applies.

    A standardising convolution without a gain can apply weights with mean zero and deviation below one in each filter:
    with a tiny variance, eps scales them. Larger weights are scaled down, all filters by one factor, which a following
    normalisation undoes; :func:`mixmo.fuse` checks that there is one.

    Example:
        >>> conv, target = ScaledStdConv2d(3, 8, 3), effective_weight(ScaledStdConv2d(3, 8, 3)) * 2.5
        >>> set_effective_weight(conv, target)
        >>> torch.testing.assert_close(effective_weight(conv), target)
    """
    weight: Tensor = conv.weight  # type: ignore[assignment]
    if type(conv) in PLAIN:
        weight.copy_(target)
        return
    variance = target.double().var((1, 2, 3), correction=0, keepdim=True)
    eps: float = conv.eps  # type: ignore[assignment]
    if type(conv) in SCALED:
        weight.copy_(target)
        conv.gain.copy_((variance + eps).sqrt() / conv.scale)  # type: ignore[operator, union-attr]
        return
    largest = float(variance.max().sqrt())
    factor = 0.5 / largest if largest > 0.9 else 1.0
    weight.copy_(target.double() * factor * (eps / (1 - variance * factor**2)).sqrt())


@torch.no_grad()
def scale(conv: nn.Module, factor: float) -> None:
    """Scale a supported convolution's output; one that standardises its weights without a gain is left unchanged."""
    if type(conv) in STANDARDISED:
        return
    for name, parameter in conv.named_parameters():
        if name in ("gain", "bias") or type(conv) in PLAIN:
            parameter.mul_(factor)


def convolve(x: Tensor, conv: nn.Module, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a supported convolution to images (B, C, H, W), with other weights and bias."""
    options: nn.Conv2d = conv  # type: ignore[assignment]
    if type(conv) is Conv2dSame or getattr(conv, "same_pad", False):
        x = pad_same(x, list(weight.shape[-2:]), list(options.stride), list(options.dilation))
    return F.conv2d(x, weight, bias, options.stride, options.padding, options.dilation, options.groups)
