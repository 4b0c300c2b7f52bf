"""Augmentation on the device, in training and at test time."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from mixmo.batch_mixing import WHOLE, GivenImages, ImageSource
from mixmo.config.data_settings import DataSettings
from mixmo.data.image_sets import DistinctBatch
from mixmo.data.policies import Policy
from mixmo.header import Preparation, height_and_width

Augmentations = Literal["none", "flip", "crops"]
"""Test-time augmentation (:meth:`CenterCrop.views`)."""


class CenterCrop:
    """The middle of images, then (x / 255 - mean) / std: what a trained network sees.

    Example:
        >>> how = Preparation(channels=1, interpolation="bicubic", mean=[0.5], std=[0.5], crop_size=2)
        >>> CenterCrop(how).center(torch.zeros(1, 4, 4, 1, dtype=torch.uint8)).shape
        torch.Size([1, 1, 2, 2])
    """

    def __init__(self, how: Preparation | DataSettings) -> None:
        self.crop_size = None if how.crop_size is None else height_and_width(how.crop_size)
        mean, std = torch.tensor(how.mean), torch.tensor(how.std)
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def center(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return (n, C, h, w): the middle crop of the images of ``index``, or of all; black beyond the border.

        Floating-point images (N, C, h, w), which a Dataset has prepared, are returned unchanged.
        """
        index = torch.arange(len(images), device=images.device) if index is None else index
        if images.is_floating_point():
            return images[index]
        (height, width), (rows, columns) = images.shape[1:3], self._crop(images)
        taller, wider = rows - height, columns - width
        above, before = int(taller / 2), int(wider / 2)  # where these are negative, pad() crops
        return self._normalise(pad(images[index], (0, 0, before, wider - before, above, taller - above)))

    def views(self, images: Tensor, tta: Augmentations, index: Tensor | None = None) -> list[Tensor]:
        """Return what test-time augmentation shows a network of images (:meth:`center`), each (n, C, h, w).

        That is the middle (``none``), the middle and its mirror image (``flip``), or the middle and the four corners
        of images (N, H, W, C) that are larger than the crop (``crops``).

        Example:
            >>> how = Preparation(channels=1, interpolation="bicubic", mean=[0.0], std=[1 / 255], crop_size=1)
            >>> image = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3, 1)
            >>> [view.item() for view in CenterCrop(how).views(image, "crops")]
            [4.0, 0.0, 2.0, 6.0, 8.0]
        """
        middle = self.center(images, index)
        if tta != "crops":
            return [middle] if tta == "none" else [middle, middle.flip(3)]
        images = images if index is None else images[index]
        (height, width), (rows, columns) = images.shape[1:3], middle.shape[2:]
        corners = [(top, left) for top in (0, height - rows) for left in (0, width - columns)]
        parts = [images[:, top : top + rows, left : left + columns] for top, left in corners]
        return [middle, *map(self._normalise, parts)]

    def _crop(self, images: Tensor) -> tuple[int, int]:
        return self.crop_size or (images.shape[1], images.shape[2])

    def _normalise(self, pixels: Tensor) -> Tensor:
        if self.scale.device != pixels.device:  # once: the host waits for it
            self.scale, self.shift = self.scale.to(pixels.device), self.shift.to(pixels.device)
        return torch.addcmul(self.shift, pixels.float(), self.scale).permute(0, 3, 1, 2)


class Augmentation(CenterCrop):
    """Random crops, mirroring and a policy, then (x / 255 - mean) / std; whole batch at once.

    Example:
        >>> augment = Augmentation(DataSettings(padding=0, flip=False, mean=[0.5], std=[0.5]))
        >>> images = torch.full((2, 4, 4, 3), 255, dtype=torch.uint8)
        >>> augment.center(images, torch.tensor([0])).mean().round().item()
        1.0
    """

    def __init__(self, settings: DataSettings) -> None:
        super().__init__(settings)
        self.padding, self.flip, self.settings = settings.padding, settings.flip, settings
        self.policy = Policy(settings) if Policy.needed(settings) else None

    def source(self, batch: DistinctBatch, generator: torch.Generator) -> ImageSource:
        """Return the images of a step for :meth:`BatchMixer.mix`; a Dataset's own stay as they are."""
        if batch.images.is_floating_point():
            return GivenImages(batch.images, batch.labels)
        return AugmentedImages(batch, self, generator)

    def random(self, images: Tensor, index: Tensor, generator: torch.Generator, part: slice = WHOLE) -> Tensor:
        """Return (n, C, h, w): the images of ``index`` (n,) among (N, H, W, C) uint8, each cropped and mirrored alone.

        Draws are made for all of the n, also if a part of them is wanted; a policy draws from torch's global generator.
        """
        if self.policy is None:
            return self._normalise(self._cropped(images, index, generator, part))
        if self.settings.augmentation == "photo":
            planes = self.policy.crop(images[index[part]].permute(0, 3, 1, 2).float() / 255, self._crop(images))
            if self.flip:
                mirrored = torch.rand(len(index), 1, 1, 1, generator=generator, device=images.device)[part] < 0.5
                planes = torch.where(mirrored, planes.flip(3), planes)
        else:
            planes = self._cropped(images, index, generator, part).permute(0, 3, 1, 2).float() / 255
        return self._normalise((255 * self.policy(planes)).permute(0, 2, 3, 1).contiguous())

    def _cropped(self, images: Tensor, index: Tensor, generator: torch.Generator, part: slice) -> Tensor:
        """Return (n, h, w, C) uint8: crops at random places of the padded images, half of them mirrored."""
        (height, width), (rows, columns) = images.shape[1:3], self._crop(images)
        count, device = len(index), images.device
        uniform = torch.rand(2, count, 1, generator=generator, device=device)[:, part]
        y = self._start(uniform[0], height - rows) + torch.arange(rows, device=device)
        x = self._start(uniform[1], width - columns) + torch.arange(columns, device=device)
        if self.flip:
            mirrored = torch.rand(count, 1, generator=generator, device=device)[part] < 0.5
            x = torch.where(mirrored, x.flip(1), x)
        if self.settings.padding_mode == "reflect":
            y, x = _reflect(y, height), _reflect(x, width)
        black = ((y < 0) | (y >= height))[:, :, None] | ((x < 0) | (x >= width))[:, None, :]
        place = (index[part, None] * height + y.clamp(0, height - 1))[:, :, None] * width
        place = place + x.clamp(0, width - 1)[:, None, :]
        pixels = images.view(-1, images.shape[3]).index_select(0, place.flatten()).view(*place.shape, -1)
        return pixels.masked_fill_(black[..., None], 0)

    def _start(self, uniform: Tensor, room: int) -> Tensor:
        return (uniform * (room + 2 * self.padding + 1)).long() - self.padding


def _reflect(places: Tensor, size: int) -> Tensor:
    """Return places up to ``size - 1`` beyond the border mirrored back inside; the border itself is not repeated."""
    return size - 1 - (size - 1 - places.abs()).abs()


class AugmentedImages:
    """The images of one step as a source of augmented copies; the generator is seeded for this step."""

    def __init__(self, batch: DistinctBatch, augment: Augmentation, generator: torch.Generator) -> None:
        self.images, self.labels, self.chosen = batch
        self.augment, self.generator = augment, generator

    def copy_pairs(self, pairs: Tensor, part: slice) -> Tensor:
        """Return (b, M, C, H, W) for a part of the pairs (B, M)."""
        return self.copy_places(self.chosen[pairs], part)

    def copy_places(self, places: Tensor, part: slice) -> Tensor:
        """Return (b, M, C, H, W): an augmented copy for each of the places (B, M) of a part."""
        first, last, _ = part.indices(len(places))
        members = places.shape[1]
        own = slice(first * members, last * members)
        copies = self.augment.random(self.images, places.flatten(), self.generator, own)
        return copies.view(last - first, members, *copies.shape[1:])
