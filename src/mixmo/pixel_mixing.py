"""Mixup and CutMix in pixels, applied to each member's input.

Labels are weighted by the *visible* share of each image: another member's mask can hide parts of it when features are
mixed (the paper's appendix on CutMix).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mixmo.errors import InputError, reason
from mixmo.masks import KINDS, FeatureShape
from mixmo.mixing import Mixer
from mixmo.seeding import drawing_device
from mixmo.validation import Number, Share, settings_class

PIXEL_KINDS = {"mixup": "linear", "cutmix": "cut"}
"""The mask of ``mixmo.masks`` that each kind uses for its two images."""


@settings_class("pixels", frozen=True)
class PixelMixer:
    """Draws pixel masks: the share of each pixel that an input keeps, the rest being its partner's.

    This is also the section ``pixels`` of a run's settings.

    Raises:
        InputError: if an argument is out of its range.

    Example:
        >>> mixer = PixelMixer("cutmix", probability=1.0)
        >>> keep = mixer.sample(8, 2, (32, 32), generator=torch.Generator().manual_seed(0))
        >>> keep.shape, sorted(keep.unique().tolist())
        (torch.Size([8, 2, 1, 32, 32]), [0.0, 1.0])
    """

    kind: Literal["none", "mixup", "cutmix"] = "none"
    """``mixup`` (one ratio everywhere), ``cutmix`` (the partner gets a rectangle), or ``none``."""
    alpha: Annotated[Number, Field(gt=0, le=1e6)] = 1.0
    """Concentration of Beta(alpha, alpha); 1 (uniform) in the paper."""
    probability: Share = 0.5
    """Share of inputs that are mixed, drawn for every sample and member; 0.5 in the paper."""

    def __post_init__(self) -> None:
        # Created once, since torch.compile cannot trace the creation of a settings class.
        object.__setattr__(self, "_two_images", Mixer("linear", 2, self.alpha))

    def sample(
        self,
        batch_size: int,
        num_members: int,
        size: tuple[int, int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw the masks of one batch.

        Args:
            batch_size: B.
            num_members: M.
            size: (H, W) of the images.
            generator: Random generator; ``None`` is the device's global one.
            device: Where to draw; ``None`` is the generator's device, or the CPU.

        Returns:
            Masks (B, M, 1, H, W): the share of each pixel that the input keeps, 1 if it is not mixed.
        """
        count = batch_size * num_members
        device = drawing_device(generator, device)
        if self.kind == "none":
            return torch.ones(batch_size, num_members, 1, *size, device=device)
        shape: FeatureShape = (1, *size)
        ratios = self._two_images.sample(count, (1, 1, 1), generator, device=device).ratios  # type: ignore[attr-defined]
        masks = KINDS[PIXEL_KINDS[self.kind]](ratios, shape, generator, None)
        mixed = torch.rand(count, 1, 1, 1, generator=generator, dtype=torch.float32, device=device) < self.probability
        keep = torch.where(mixed, masks[:, 1], 1.0)  # the first mask, the rectangle, is the partner's
        return keep.view(batch_size, num_members, 1, *size)


def visible_share(keep: Tensor, masks: Tensor) -> Tensor:
    """Return the share (B, M) of the visible pixels that each input keeps: mean(keep ⊙ mask) / (mean(mask) + 1e-8).

    ``keep`` (B, M, 1, H, W) is average-pooled to the size of the members' masks (B, M, 1 or F, h, w). A member with an
    empty mask has share 0.

    Example:
        >>> keep = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)
        >>> mask = torch.tensor([0.0, 1.0, 1.0, 1.0]).view(1, 1, 1, 1, 4)
        >>> visible_share(keep, mask).item()
        0.333...
    """
    if keep.shape[-2:] != masks.shape[-2:]:
        pooled = F.adaptive_avg_pool2d(keep.flatten(0, 1), (masks.shape[-2], masks.shape[-1]))
        keep = pooled.unflatten(0, keep.shape[:2])
    return (keep * masks).mean((2, 3, 4)) / (masks.mean((2, 3, 4)) + 1e-8)


def keep_majority(keep: Tensor, masks: Tensor) -> Tensor:
    """Replace ``keep`` by 1 - keep for inputs whose :func:`visible_share` is below half.

    Example:
        >>> keep = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)
        >>> keep_majority(keep, torch.ones(1, 1, 1, 1, 4)).flatten().tolist()
        [0.0, 1.0, 1.0, 1.0]
    """
    minor = visible_share(keep, masks) < 0.5
    return torch.where(minor[:, :, None, None, None], 1 - keep, keep)


def mix_pixels(inputs: Tensor, partners: Tensor, keep: Tensor) -> Tensor:
    """Return keep ⊙ inputs + (1 - keep) ⊙ partners for images (B, M, C, H, W) and masks (B, M, 1, H, W)."""
    return torch.lerp(partners, inputs, keep.to(inputs.dtype))


def shared_targets(targets: Tensor, partner_targets: Tensor, share: Tensor, num_classes: int) -> Tensor:
    """Return soft targets (B, M, K), share * target + (1 - share) * partner, for visible shares (B, M).

    Targets are class numbers (B, M), taken as one-hot, or (B, M, K) a value for each class.

    Example:
        >>> shared_targets(torch.tensor([[0]]), torch.tensor([[2]]), torch.tensor([[0.75]]), 3).tolist()
        [[[0.75, 0.0, 0.25]]]
    """
    if targets.is_floating_point():
        return torch.lerp(partner_targets, targets, share[:, :, None])
    soft = share.new_zeros(*targets.shape, num_classes)
    try:
        soft.scatter_add_(2, targets[:, :, None], share[:, :, None])
        return soft.scatter_add_(2, partner_targets[:, :, None], 1 - share[:, :, None])
    except RuntimeError as error:
        if "out of bounds" not in str(error):  # such as a lack of memory
            raise
        message = f"class numbers of {num_classes} classes range from 0 to {num_classes - 1}"
        raise InputError(f"{reason(error)}: {message}.") from error
