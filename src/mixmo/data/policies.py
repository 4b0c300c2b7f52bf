"""Augmentation of whole batches by kornia: photos, TrivialAugment, RandAugment, random erasing."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mixmo.config.data_settings import DataSettings
from mixmo.errors import import_extra

GROUPS = 4
"""Parts of a batch: a policy draws its operations once for each, since drawing them for each image is slower."""


class Policy:
    """Augmentation beyond plain crops and mirroring.

    It draws from torch's global generator, which is seeded from (seed, step) before each training step.
    """

    def __init__(self, settings: DataSettings) -> None:
        why = "data.augmentation photo, data.policy and data.erasing need kornia"
        modules = "kornia.augmentation", "kornia.augmentation.auto"
        augmentation, auto = (import_extra(name, "augmentation", why) for name in modules)
        policies = {"trivialaugment": auto.TrivialAugment, "randaugment": partial(auto.RandAugment, n=2, m=10)}
        self.policy = None if settings.policy == "none" else policies[settings.policy]()
        self.erase = augmentation.RandomErasing(p=settings.erasing) if settings.erasing else None
        self.settings, self.resized_crop, self.jitter = settings, augmentation.RandomResizedCrop, None
        if settings.augmentation == "photo" and (jitter := settings.color_jitter):
            self.jitter = augmentation.ColorJitter(jitter, jitter, jitter)

    @staticmethod
    def needed(settings: DataSettings) -> bool:
        """Return whether the settings ask for it."""
        return settings.augmentation == "photo" or settings.policy != "none" or settings.erasing > 0

    @torch.no_grad()
    def crop(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Return random crops (B, C, h, w) in [0, 1], of random shares of the images' areas, scaled to the size."""
        with torch.autocast(images.device.type, enabled=False):
            cropped: Tensor = self.resized_crop(size, scale=tuple(self.settings.scale))(images)
        return cropped

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Augment images (B, C, H, W) in [0, 1]; grey ones are passed to the policy as RGB."""
        channels = images.shape[1]
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 is too coarse for coordinates
            if self.jitter is not None:
                images = self.jitter(images.expand(-1, 3, -1, -1))[:, :channels]
            if self.policy is not None:
                parts = images.expand(-1, 3, -1, -1).chunk(GROUPS)
                images = torch.cat([self.policy(part) for part in parts])[:, :channels]
            if self.erase is not None:
                images = self.erase(images)
        return images.clamp(0, 1)
