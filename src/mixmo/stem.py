"""The modules in a backbone's stem and head: M encoders with the mixing block, M classifiers.

Masks reach the stem in further channels of its input, since a backbone's forward passes on only images. So a call
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

from mixmo.errors import InputError, reason
from mixmo.mixing import mix_features
from mixmo.models.convolutions import convolve, effective_weight, is_known
from mixmo.models.copying import copy_module


class MixingStem(nn.Module):
    """M encoders and the mixing block: (B, M*C [+ P], H, W) ↦ M * Σ_i mask_i ⊙ encoder_i(x_i), (B, F, h, w).

    The P further channels hold the masks (:func:`with_masks`); without them members are mixed equally. Every encoder
    gets images (B, C, H, W); convolutions are then summed first, so that inference costs only one.
    """

    def __init__(self, encoders: Iterable[nn.Module], in_chans: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.in_chans = in_chans
        self.shapes: dict[tuple[int, int], tuple[int, int, int]] = {}

    def encoder_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (F, h, w), an encoder's output shape for images of height × width; cached."""
        if (height, width) in self.shapes:
            return self.shapes[height, width]
        encoder = copy_module(self.encoders[0]).to("meta").eval()  # shapes only, nothing is computed
        try:
            output = encoder(torch.empty(1, self.in_chans, height, width, device="meta"))
        except RuntimeError as error:
            raise InputError(f"the stem cannot take images of {height}×{width}: {reason(error)}.") from error
        if output.dim() != 4:
            raise InputError(f"the stem's output for an image is {tuple(output.shape)}; it has to be (B, F, h, w).")
        _, channels, rows, columns = output.shape
        self.shapes[height, width] = (channels, rows, columns)
        return channels, rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """Encode each member's images and mix the features."""
        if not torch.compiler.is_compiling():
            _check_shown(x)
        same_image = x.shape[1] == self.in_chans
        if same_image and all(map(is_known, self.encoders)):
            return convolve(x, self.encoders[0], *summed_weights(self.encoders))
        members, used = len(self.encoders), len(self.encoders) * self.in_chans
        inputs = [x] * members if same_image else x[:, :used].split(self.in_chans, 1)
        features = [encoder(image) for encoder, image in zip(self.encoders, inputs, strict=True)]
        if same_image or x.shape[1] == used:
            return mix_features(features, None)
        return mix_features(features, _unpacked_masks(x[:, used:], members, features[0]))


_shown = threading.local()
"""The input of this thread's backbone, which its stem has to see unchanged."""


@contextmanager
def check_stem_input(x: Tensor) -> Iterator[None]:
    """Refuse, within the block, a backbone that passes its stem anything but ``x``, which holds masks too."""
    _shown.x, _shown.version = x, _version(x)
    try:
        yield
    finally:
        _shown.x = None


def _version(x: Tensor) -> int | None:
    """Return how often a tensor was changed in place; ``None`` in inference mode, which does not count."""
    return None if x.is_inference() else x._version


def _check_shown(x: Tensor) -> None:
    expected: Tensor | None = getattr(_shown, "x", None)
    if expected is None:
        return
    alias = x.data_ptr() == expected.data_ptr()  # else a copy, such as DaViT's empty padding
    same = x.shape == expected.shape and x.dtype == expected.dtype
    if not same or _version(x if alias else expected) != _shown.version or not (alias or torch.equal(x, expected)):
        raise _changed(expected.shape, x.shape)


def _changed(expected: Sequence[int], found: Sequence[int]) -> InputError:
    return InputError(
        f"the backbone changes its input before its stem ({tuple(expected)} became {tuple(found)}, or other numbers); "
        "members' inputs need a backbone that passes whole images to its stem unchanged: normalise outside it."
    )


SIDES = (32, 64, 224, 256, 384)
"""Image sizes to try where a backbone does not declare one."""


class _ReachedError(Exception):
    """Every stem was called; the rest of the backbone need not run."""


@torch.no_grad()
def try_mixture(backbone: nn.Module, stems: Sequence[MixingStem], size: tuple[int, int] | None) -> None:
    """Show a backbone two equal mixtures, in evaluation and in training, and check that its stems get them unchanged.

    A compiled network skips the check of each call (:func:`check_stem_input`), so this one is done at construction. The
    backbone runs only up to its stems. Its buffers and modes and torch's generators are left as they were. ``size`` is
    (H, W) of its images, if that is known; a backbone that takes none of the sizes tried is left to the check of each
    call.
    """
    modes = [(module, module.training) for module in backbone.modules()]
    sizes = [*([size] if size else []), *((side, side) for side in SIDES)]
    try:
        for training in (False, True):
            for module, _ in modes:
                module.training = training
            any(_check_takes_mixtures(backbone, stems, each) for each in sizes)  # the first that the backbone takes
    finally:
        for module, before in modes:
            module.training = before


def _check_takes_mixtures(backbone: nn.Module, stems: Sequence[MixingStem], size: tuple[int, int]) -> bool:
    """Return whether a backbone takes mixtures of a size; refuse one that passes its stems anything else."""
    first, channels = next(stems[0].parameters()), len(stems[0].encoders) * stems[0].in_chans
    if first.is_meta:
        return True  # there are no numbers to compare
    x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0)).to(first)
    expected, waiting = x.clone(), set(stems)

    def see(stem: nn.Module, inputs: tuple[Tensor]) -> None:
        (shown,) = inputs
        if shown.shape != expected.shape or shown.dtype != expected.dtype or not torch.equal(shown, expected):
            raise _changed(expected.shape, shown.shape)
        waiting.discard(stem)  # type: ignore[arg-type]
        if not waiting:
            raise _ReachedError

    hooks = [stem.register_forward_pre_hook(see) for stem in stems]
    buffers = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    try:
        with torch.random.fork_rng([first.device] if first.is_cuda else []):
            functional_call(backbone, buffers, (x,))
    except _ReachedError:
        return True
    except InputError:
        raise
    except Exception:  # the backbone's own code may raise anything for images of that size
        return False
    finally:
        for hook in hooks:
            hook.remove()
    return not waiting


def with_masks(inputs: Tensor, masks: Tensor) -> Tensor:
    """Return (B, M*C + P, H, W): images (B, M, C, H, W), and the numbers of masks (B, M, 1 or F, h, w) in P planes."""
    batch, _, _, height, width = inputs.shape
    members, channels, rows, columns = masks.shape[1:]
    planes = _planes(members, (channels, rows, columns), (height, width))
    padding = planes * height * width - masks[0].numel()
    packed = F.pad(masks.flatten(1), (0, padding)).view(batch, planes, height, width)
    return torch.cat([inputs.flatten(1, 2), packed.to(inputs.dtype)], 1)


def _unpacked_masks(packed: Tensor, members: int, features: Tensor) -> Tensor:
    """Return the masks (B, M, 1 or F, h, w) that :func:`with_masks` packed, for features (B, F, h, w)."""
    batch, planes, *size = packed.shape
    _, width, *shape = features.shape
    for channels in (1, width):
        if planes == _planes(members, (channels, *shape), (size[0], size[1])):
            numbers = members * channels * math.prod(shape)
            return packed.flatten(1)[:, :numbers].reshape(batch, members, channels, *shape)
    raise InputError(f"the masks do not fit the encoders' output {tuple(features.shape[1:])}.")


def _planes(members: int, shape: Sequence[int], size: tuple[int, int]) -> int:
    """Return P, the planes of H × W numbers for masks (M, c, h, w); always more of them for c = F than for c = 1."""
    return math.ceil(members * math.prod(shape) / math.prod(size)) + (shape[0] > 1)


def summed_weights(encoders: Iterable[nn.Module]) -> tuple[Tensor, Tensor | None]:
    """Return the weight and the bias of the one convolution that is the sum of several of a known kind."""
    weights, biases = zip(*((effective_weight(encoder), encoder.bias) for encoder in encoders), strict=True)
    bias = None if biases[0] is None else torch.stack(biases).sum(0)
    return torch.stack(weights).sum(0), bias


class MemberHeads(nn.Module):
    """M classifiers of the same features; their logits are concatenated: (B, M*K)."""

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.channel_axis = 1 if isinstance(self.heads[0], nn.Conv2d) else -1

    def forward(self, x: Tensor) -> Tensor:
        """Apply every head to the features."""
        return torch.cat([head(x) for head in self.heads], self.channel_axis)
