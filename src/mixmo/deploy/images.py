"""Images to predict: files, bytes, Pillow images, arrays and tensors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixmo.config.data_settings import MOST_WORKERS
from mixmo.data.decoding import explain_error, image_pixels, to_size
from mixmo.data.folders import read_file, walk
from mixmo.data.workers import begin_worker
from mixmo.errors import InputError, MissingError
from mixmo.escaping import printable

AnyImage = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor


class Form(NamedTuple):
    """What a network takes.

    Attributes:
        size: (H, W).
        channels: 3, 1 or 4.
        interpolation: How images are scaled to the size.
        window: Values of files with more than 8 bits that become 0 and 255.
    """

    size: tuple[int, int]
    channels: int
    interpolation: str
    window: tuple[float, ...] | None = None


def pixels_of(image: AnyImage, channels: int, window: Sequence[float] | None = None) -> np.ndarray:
    """Return an image (H, W, C) uint8, upright and on white, as training reads it.

    Args:
        image: A path, the content of an image file, a Pillow image, an array (H, W) or (H, W, C), or a tensor (C, H, W)
            or (H, W): uint8, or floats from 0 to 1.
        channels: C, 3, 1 or 4.
        window: Values of files with more than 8 bits that become 0 and 255.

    Raises:
        InputError: if it is none of these, or cannot be read.

    Example:
        >>> pixels_of(torch.ones(1, 2, 4), 3).shape, pixels_of(np.full((2, 4), 0.5), 1)[0, 0, 0]
        ((2, 4, 3), np.uint8(128))
    """
    name = os.fspath(image) if isinstance(image, str | os.PathLike) else "an image"
    if isinstance(image, str | os.PathLike):
        image = read_file(os.fspath(image))
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image if image.dim() == 2 else image.movedim(0, -1)).numpy()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(_bytes_of(image))
    if not isinstance(image, bytes | Image.Image):
        raise InputError(f"a {type(image).__name__} is no image; give a path, bytes, a Pillow image, array or tensor.")
    return image_pixels(image, channels, window, lambda: name)


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """Return (H, W) or (H, W, 3 or 4) uint8."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or not array.size:
        raise InputError(
            f"an image of shape {array.shape} is none: arrays are (H, W) or (H, W, C), tensors (H, W) or (C, H, W), "
            "with 1, 3 or 4 channels."
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        raise InputError(f"an image of {array.dtype} holds uint8, or finite floats from 0 to 1.")
    return np.asarray((array * 255).round().astype(np.uint8))


def files_below(words: Iterable[str]) -> list[str]:
    """Return image files: those that are named, and all below the folders that are named, sorted.

    Args:
        words: Files and folders.

    Raises:
        MissingError: if one is missing, or a folder has no images.
    """
    found: list[str] = []
    for word in words:
        if os.path.isdir(word):
            if not (below := sorted(os.path.join(word, path) for path, kind in walk(word) if kind == "image")):
                raise MissingError(f"folder {printable(word)} holds no images.")
            found += below
        elif os.path.exists(word):
            found.append(word)
        else:
            raise MissingError(f"there is no image or folder {printable(word)}.")
    return found


class Decoded(NamedTuple):
    """A batch of images that could be read, and why others could not.

    Attributes:
        numbers: Their places among all images.
        pixels: For each form, (B, H, W, C) uint8.
        errors: Reasons, by the places of the others.
    """

    numbers: list[int]
    pixels: dict[Form, Tensor]
    errors: dict[int, str]


class _Images(Dataset[Decoded]):
    def __init__(self, images: Sequence[AnyImage], forms: Sequence[Form]) -> None:
        self.images, self.forms = images, forms

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, numbers: list[int]) -> Decoded:
        good, errors = [], {}
        parts: dict[Form, list[np.ndarray]] = {form: [] for form in self.forms}
        for number in numbers:
            try:
                image = self.images[number]
                found = [to_size(pixels_of(image, form.channels, form.window), form.size, form.interpolation)
                         for form in self.forms]  # fmt: skip
            except Exception as error:  # damaged content makes Pillow and its codecs raise anything
                errors[number] = explain_error(error)
                continue
            good.append(number)
            for form, pixels in zip(self.forms, found, strict=True):
                parts[form].append(pixels)
        return Decoded(good, {form: torch.from_numpy(np.stack(each)) for form, each in parts.items() if each}, errors)


def decode_image(images: Sequence[AnyImage], forms: Sequence[Form], batch_size: int, workers: int) -> Iterator[Decoded]:
    """Yield batches of images, decoded by processes, in order.

    Args:
        images: The images.
        forms: What the networks take.
        batch_size: Images in a batch.
        workers: Processes; 0 decodes in this one.

    Raises:
        InputError: if there are more workers than ``MOST_WORKERS``.
    """
    if not 0 <= workers <= MOST_WORKERS:
        raise InputError(f"workers is {workers}; it lies between 0 and {MOST_WORKERS}.")
    loader: Any = DataLoader(
        _Images(images, forms), batch_size, num_workers=workers, collate_fn=_as_is, worker_init_fn=begin_worker,
        generator=torch.Generator(),  # else the loader draws a seed of torch's global one
    )  # fmt: skip
    yield from loader


def _as_is(batch: Any) -> Any:
    return batch
