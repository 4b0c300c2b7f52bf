"""Augmentation by kornia for whole batches: photos, TrivialAugment, RandAugment, random erasing."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mixmo.config.data_settings import DataSettings
from mixmo.errors import import_extra

GROUPS = 4
"""Parts of a batch; a policy draws its operations for each part, since drawing them for each image is slower."""


class Policy:
    """What a recipe asks for beyond plain crops and mirroring; draws come from torch's global generator.

    That generator is seeded from (seed, step) before each training step, so that these draws are too.
    """

    def __init__(self, settings: DataSettings) -> None:
        why = "data.augmentation photo, data.policy and data.erasing need kornia"
        modules = "kornia.augmentation", "kornia.augmentation.auto"
        augmentation, auto = (import_extra(name, "augmentation", why) for name in modules)
        policies = {"trivialaugment": auto.TrivialAugment, "randaugment": partial(auto.RandAugment, n=2, m=10)}
        self.policy = None if settings.policy == "none" else policies[settings.policy]()
        self.erase = augmentation.RandomErasing(p=settings.erasing) if settings.erasing else None
        self.settings, self.resized_crop, self.jitter = settings, augmentation.RandomResizedCrop, None
        if settings.augmentation == "photo" and (most := settings.color_jitter):
            self.jitter = augmentation.ColorJitter(most, most, most)

    @staticmethod
    def needed(settings: DataSettings) -> bool:
        """Return whether a recipe asks for any of it."""
        return settings.augmentation == "photo" or settings.policy != "none" or settings.erasing > 0

    @torch.no_grad()
    def crop(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (B, C, h, w) in [0, 1]: a part of each image, of a random share of its area, scaled to the size."""
        with torch.autocast(images.device.type, enabled=False):
            cropped: Tensor = self.resized_crop(size, scale=tuple(self.settings.scale))(images)
        return cropped

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] changed; grey ones are shown to the policy as colours."""
        channels = images.shape[1]
        with torch.autocast(images.device.type, enabled=False):  # positions do not survive bfloat16
            if self.jitter is not None:
                images = self.jitter(images.expand(-1, 3, -1, -1))[:, :channels]
            if self.policy is not None:
                parts = images.expand(-1, 3, -1, -1).chunk(GROUPS)
                images = torch.cat([self.policy(part) for part in parts])[:, :channels]
            if self.erase is not None:
                images = self.erase(images)
        return images.clamp(0, 1)
