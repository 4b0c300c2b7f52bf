"""The modules that replace a backbone's stem and head: M encoders with the mixing block, M classifiers.

Masks reach the stem in additional input channels, since a backbone's forward takes only images. A call therefore
changes no module: threads may share a network, and activation checkpointing recomputes from the same inputs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mixmo.errors import InputError, explain_errors
from mixmo.mixing import mix_features
from mixmo.models.convolutions import convolve, effective_weight, is_supported
from mixmo.models.copying import copy_module


class MixingStem(nn.Module):
    """M encoders and the mixing block: (B, M*C [+ P], H, W) ↦ M * Σ_i mask_i ⊙ encoder_i(x_i), (B, F, h, w).

    The P additional channels hold the masks (:func:`pack_masks`); without them members are mixed equally. An input
    (B, C, H, W) is shown to every encoder; convolutions are then summed first, so that inference costs only one.
    """

    def __init__(self, encoders: Iterable[nn.Module], in_chans: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.in_chans = in_chans
        self.shapes: dict[tuple[int, int], tuple[int, int, int]] = {}

    def encoder_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (F, h, w), an encoder's output shape for images of height × width (cached)."""
        if (height, width) in self.shapes:
            return self.shapes[height, width]
        encoder = copy_module(self.encoders[0]).to("meta").eval()  # computes shapes only
        with explain_errors(f"the stem does not accept images of {height}×{width}", RuntimeError):
            output = encoder(torch.empty(1, self.in_chans, height, width, device="meta"))
        if output.dim() != 4:
            raise InputError(f"the stem's output has shape {tuple(output.shape)}; it must be (B, F, h, w).")
        _, channels, rows, columns = output.shape
        self.shapes[height, width] = (channels, rows, columns)
        return channels, rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """Encode each member's images and mix the features."""
        if not torch.compiler.is_compiling():
            _check_unchanged(x)
        same_image = x.shape[1] == self.in_chans
        if same_image and all(map(is_supported, self.encoders)):
            return convolve(x, self.encoders[0], *summed_weights(self.encoders))
        members, channels = len(self.encoders), len(self.encoders) * self.in_chans
        inputs = [x] * members if same_image else x[:, :channels].split(self.in_chans, 1)
        features = [encoder(image) for encoder, image in zip(self.encoders, inputs, strict=True)]
        if same_image or x.shape[1] == channels:
            return mix_features(features, None)
        return mix_features(features, _unpack_masks(x[:, channels:], members, features[0]))


_expected = threading.local()
"""The input of this thread's backbone, which must reach its stem unchanged."""


@contextmanager
def check_stem_input(x: Tensor) -> Iterator[None]:
    """Within the block, raise if the backbone changes ``x`` before its stem."""
    _expected.x, _expected.version = x, _version(x)
    try:
        yield
    finally:
        _expected.x = None


def _version(x: Tensor) -> int | None:
    """Return the number of in-place changes of a tensor; ``None`` in inference mode, which does not count them."""
    return None if x.is_inference() else x._version


def _check_unchanged(x: Tensor) -> None:
    expected: Tensor | None = getattr(_expected, "x", None)
    if expected is None:
        return
    alias = x.data_ptr() == expected.data_ptr()  # else a copy, such as that of DaViT's empty padding
    same = x.shape == expected.shape and x.dtype == expected.dtype
    if not same or _version(x if alias else expected) != _expected.version or not (alias or torch.equal(x, expected)):
        raise _changed_input(expected.shape, x.shape)


def _changed_input(expected: Sequence[int], actual: Sequence[int]) -> InputError:
    return InputError(
        f"the backbone changes its input before its stem (shape {tuple(expected)} became {tuple(actual)}, or values "
        "changed), so its stem cannot separate the members' images; normalise images outside the backbone."
    )


SIDES = (32, 64, 224, 256, 384)
"""Image sizes to try if a backbone does not declare one."""


class _AllStemsReachedError(Exception):
    """Every stem was called, so the rest of the backbone need not run."""


@torch.no_grad()
def try_mixture(backbone: nn.Module, stems: Sequence[MixingStem], size: tuple[int, int] | None) -> None:
    """Run a backbone up to its stems, in evaluation and training mode, and raise if its input does not reach them.

    This is done at construction because a compiled network skips the check of each call (:func:`check_stem_input`).
    Buffers, modes and torch's generators are left unchanged. ``size`` is (H, W) of the images, if known; a backbone
    that accepts none of the sizes tried is only checked at each call.
    """
    modes = [(module, module.training) for module in backbone.modules()]
    sizes = [*([size] if size else []), *((side, side) for side in SIDES)]
    try:
        for training in (False, True):
            for module, _ in modes:
                module.training = training
            any(_accepts_mixtures(backbone, stems, size) for size in sizes)  # stops at the first that it accepts
    finally:
        for module, mode in modes:
            module.training = mode


def _accepts_mixtures(backbone: nn.Module, stems: Sequence[MixingStem], size: tuple[int, int]) -> bool:
    """Return whether a backbone accepts mixtures of a size; raise if it changes them before a stem."""
    weight, channels = next(stems[0].parameters()), len(stems[0].encoders) * stems[0].in_chans
    if weight.is_meta:
        return True  # there are no values to compare
    x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0)).to(weight)
    expected, pending = x.clone(), set(stems)

    def check_input(stem: nn.Module, inputs: tuple[Tensor]) -> None:
        (actual,) = inputs
        if actual.shape != expected.shape or actual.dtype != expected.dtype or not torch.equal(actual, expected):
            raise _changed_input(expected.shape, actual.shape)
        pending.discard(stem)  # type: ignore[arg-type]
        if not pending:
            raise _AllStemsReachedError

    hooks = [stem.register_forward_pre_hook(check_input) for stem in stems]
    buffers = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    try:
        with torch.random.fork_rng([weight.device] if weight.is_cuda else []):
            functional_call(backbone, buffers, (x,))
    except _AllStemsReachedError:
        return True
    except InputError:
        raise
    except Exception:  # the backbone's code may raise anything for images of that size
        return False
    finally:
        for hook in hooks:
            hook.remove()
    return not pending


def pack_masks(inputs: Tensor, masks: Tensor) -> Tensor:
    """Fold images (B, M, C, H, W), and append masks (B, M, 1 or F, h, w) as P channels: (B, M*C + P, H, W)."""
    batch, _, _, height, width = inputs.shape
    members, channels, rows, columns = masks.shape[1:]
    planes = _planes(members, (channels, rows, columns), (height, width))
    padding = planes * height * width - masks[0].numel()
    packed = F.pad(masks.flatten(1), (0, padding)).view(batch, planes, height, width)
    return torch.cat([inputs.flatten(1, 2), packed.to(inputs.dtype)], 1)


def _unpack_masks(packed: Tensor, members: int, features: Tensor) -> Tensor:
    """Return the masks (B, M, 1 or F, h, w) that :func:`pack_masks` packed, for features (B, F, h, w)."""
    batch, planes, *size = packed.shape
    _, width, *shape = features.shape
    for channels in (1, width):
        if planes == _planes(members, (channels, *shape), (size[0], size[1])):
            count = members * channels * math.prod(shape)
            return packed.flatten(1)[:, :count].reshape(batch, members, channels, *shape)
    raise InputError(f"the masks do not match the encoders' output {tuple(features.shape[1:])}.")


def _planes(members: int, shape: Sequence[int], size: tuple[int, int]) -> int:
    """Return P, the planes of H × W values that hold masks (M, c, h, w).

    c = F gets one plane more, so that :func:`_unpack_masks` can tell the layouts apart.
    """
    return math.ceil(members * math.prod(shape) / math.prod(size)) + (shape[0] > 1)


def summed_weights(encoders: Iterable[nn.Module]) -> tuple[Tensor, Tensor | None]:
    """Return the weight and bias of the convolution that is the sum of several of a supported kind."""
    weights, biases = zip(*((effective_weight(encoder), encoder.bias) for encoder in encoders), strict=True)
    bias = None if biases[0] is None else torch.stack(biases).sum(0)
    return torch.stack(weights).sum(0), bias


class MemberHeads(nn.Module):
    """M classifiers of the same features; returns their concatenated logits (B, M*K)."""

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.channel_axis = 1 if isinstance(self.heads[0], nn.Conv2d) else -1

    def forward(self, x: Tensor) -> Tensor:
        """Apply every head to the features."""
        return torch.cat([head(x) for head in self.heads], self.channel_axis)
