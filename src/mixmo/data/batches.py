"""Augmentation on the device, in training and at test time."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from mixmo.batch_mixing import WHOLE, ImageSource, TensorImages
from mixmo.config.data_settings import DataSettings
from mixmo.data.image_sets import DistinctBatch
from mixmo.data.policies import Policy
from mixmo.header import Preparation, height_and_width

Augmentations = Literal["none", "flip", "crops"]
"""Test-time augmentation (:meth:`CenterCrop.views`)."""


class CenterCrop:
    """Centre crop and normalisation, (x / 255 - mean) / std.

    Example:
        >>> preparation = Preparation(channels=1, interpolation="bicubic", mean=[0.5], std=[0.5], crop_size=2)
        >>> CenterCrop(preparation).center(torch.zeros(1, 4, 4, 1, dtype=torch.uint8)).shape
        torch.Size([1, 1, 2, 2])
    """

    def __init__(self, preparation: Preparation | DataSettings) -> None:
        self.crop_size = None if preparation.crop_size is None else height_and_width(preparation.crop_size)
        mean, std = torch.tensor(preparation.mean), torch.tensor(preparation.std)
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def center(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return (n, C, h, w): the centre crop of the images at ``index``, or of all, padded with black if needed.

        Floating-point images (N, C, h, w), prepared by a Dataset, are only selected.
        """
        index = torch.arange(len(images), device=images.device) if index is None else index
        if images.is_floating_point():
            return images[index]
        (height, width), (rows, columns) = images.shape[1:3], self._crop_shape(images)
        taller, wider = rows - height, columns - width
        top, left = int(taller / 2), int(wider / 2)  # pad() crops by negative values
        return self._normalise(pad(images[index], (0, 0, left, wider - left, top, taller - top)))

    def views(self, images: Tensor, tta: Augmentations, index: Tensor | None = None) -> list[Tensor]:
        """Return the views of test-time augmentation, each (n, C, h, w).

        They are the centre crop (``none``, as :meth:`center`), with its mirror image (``flip``), or with the four
        corner crops of images (N, H, W, C) that are larger than the crop (``crops``).

        Example:
            >>> crop = CenterCrop(Preparation(1, "bicubic", mean=[0.0], std=[1 / 255], crop_size=1))
            >>> image = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3, 1)
            >>> [view.item() for view in crop.views(image, "crops")]
            [4.0, 0.0, 2.0, 6.0, 8.0]
        """
        center = self.center(images, index)
        if tta != "crops":
            return [center] if tta == "none" else [center, center.flip(3)]
        images = images if index is None else images[index]
        (height, width), (rows, columns) = images.shape[1:3], center.shape[2:]
        corners = [(top, left) for top in (0, height - rows) for left in (0, width - columns)]
        crops = [images[:, top : top + rows, left : left + columns] for top, left in corners]
        return [center, *map(self._normalise, crops)]

    def _crop_shape(self, images: Tensor) -> tuple[int, int]:
        return self.crop_size or (images.shape[1], images.shape[2])

    def _normalise(self, pixels: Tensor) -> Tensor:
        if self.scale.device != pixels.device:  # moved once, since the copy synchronises
            self.scale, self.shift = self.scale.to(pixels.device), self.shift.to(pixels.device)
        return torch.addcmul(self.shift, pixels.float(), self.scale).permute(0, 3, 1, 2)


class Augmentation(CenterCrop):
    """Random crops, mirroring and a policy for a whole batch, then normalisation.

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
        """Return a step's images for :meth:`BatchMixer.mix`; those prepared by a Dataset are not augmented."""
        if batch.images.is_floating_point():
            return TensorImages(batch.images, batch.labels)
        return AugmentedImages(batch, self, generator)

    def random(self, images: Tensor, index: Tensor, generator: torch.Generator, part: slice = WHOLE) -> Tensor:
        """Return independently augmented copies (n, C, h, w) of the images (N, H, W, C) uint8 at ``index`` (n,).

        Draws are made for all n, even if only a ``part`` is returned; a policy draws from torch's global generator.
        """
        if self.policy is None:
            return self._normalise(self._random_crop(images, index, generator, part))
        if self.settings.augmentation == "photo":
            planes = self.policy.crop(images[index[part]].permute(0, 3, 1, 2).float() / 255, self._crop_shape(images))
            if self.flip:
                mirrored = torch.rand(len(index), 1, 1, 1, generator=generator, device=images.device)[part] < 0.5
                planes = torch.where(mirrored, planes.flip(3), planes)
        else:
            planes = self._random_crop(images, index, generator, part).permute(0, 3, 1, 2).float() / 255
        return self._normalise((255 * self.policy(planes)).permute(0, 2, 3, 1).contiguous())

    def _random_crop(self, images: Tensor, index: Tensor, generator: torch.Generator, part: slice) -> Tensor:
        """Return (n, h, w, C) uint8: random crops of the padded images, half of them mirrored."""
        (height, width), (rows, columns) = images.shape[1:3], self._crop_shape(images)
        count, device = len(index), images.device
        uniform = torch.rand(2, count, 1, generator=generator, device=device)[:, part]
        y = self._random_offset(uniform[0], height - rows) + torch.arange(rows, device=device)
        x = self._random_offset(uniform[1], width - columns) + torch.arange(columns, device=device)
        if self.flip:
            mirrored = torch.rand(count, 1, generator=generator, device=device)[part] < 0.5
            x = torch.where(mirrored, x.flip(1), x)
        if self.settings.padding_mode == "reflect":
            y, x = _reflect(y, height), _reflect(x, width)
        black = ((y < 0) | (y >= height))[:, :, None] | ((x < 0) | (x >= width))[:, None, :]
        flat = (index[part, None] * height + y.clamp(0, height - 1))[:, :, None] * width
        flat = flat + x.clamp(0, width - 1)[:, None, :]
        pixels = images.view(-1, images.shape[3]).index_select(0, flat.flatten()).view(*flat.shape, -1)
        return pixels.masked_fill_(black[..., None], 0)

    def _random_offset(self, uniform: Tensor, slack: int) -> Tensor:
        return (uniform * (slack + 2 * self.padding + 1)).long() - self.padding


def _reflect(coordinates: Tensor, size: int) -> Tensor:
    """Reflect coordinates up to ``size - 1`` beyond the border back inside, without repeating the border itself."""
    return size - 1 - (size - 1 - coordinates.abs()).abs()


class AugmentedImages:
    """Source of augmented copies of one step's images; the generator is seeded for this step."""

    def __init__(self, batch: DistinctBatch, augment: Augmentation, generator: torch.Generator) -> None:
        self.images, self.labels, self.chosen = batch
        self.augment, self.generator = augment, generator

    def copy_pairs(self, pairs: Tensor, part: slice) -> Tensor:
        """Return augmented copies (b, M, C, H, W) of the images of a part of the pairs (B, M)."""
        return self.copy_images(self.chosen[pairs], part)

    def copy_images(self, places: Tensor, part: slice) -> Tensor:
        """Return augmented copies (b, M, C, H, W) of the images at a part of the places (B, M)."""
        first, last, _ = part.indices(len(places))
        members = places.shape[1]
        flat_part = slice(first * members, last * members)
        copies = self.augment.random(self.images, places.flatten(), self.generator, flat_part)
        return copies.view(last - first, members, *copies.shape[1:])
