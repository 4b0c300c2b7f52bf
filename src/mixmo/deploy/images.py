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
    """The form of a network's images: (H, W), C, and how they are made from others."""

    size: tuple[int, int]
    channels: int
    interpolation: str
    window: tuple[float, ...] | None = None
    """Values of more than 8 bits that become 0 and 255."""


def pixels_of(image: AnyImage, form: Form, name: str = "an image") -> np.ndarray:
    """Return an image (h, w, C) uint8, upright, on white and of the size, as training reads it.

    It is a path, the content of an image file, a Pillow image, an array (H, W), (H, W, C) or (C, H, W), or a tensor
    (C, H, W) or (H, W): uint8, uint16, or floats from 0 to 1; for a network with a window, any numbers in its units.
    ``name`` is for errors, if it has no path.

    Example:
        >>> form = Form((2, 4), channels=3, interpolation="bicubic")
        >>> pixels_of(torch.ones(1, 2, 4), form).shape, pixels_of(np.full((2, 4), 0.5), form)[0, 0, 0]
        ((2, 4, 3), np.uint8(128))
    """
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        image = read_file(name)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image if image.dim() == 2 else image.movedim(0, -1)).numpy()
    if isinstance(image, np.ndarray) and form.window is None:
        image = _without_window(image)
    if not isinstance(image, bytes | Image.Image | np.ndarray):
        raise InputError(f"a {type(image).__name__} is not an image; give a path, bytes, PIL image, array or tensor.")
    pixels = image_pixels(image, form.channels, form.window, lambda: name, form.size)
    return to_size(pixels, form.size, form.interpolation)


def _without_window(array: np.ndarray) -> np.ndarray:
    """Return floats from 0 to 1 as uint8, and other values whose range is known as they are."""
    if array.dtype in (np.uint8, np.uint16):
        return array
    if array.dtype.kind == "f" and np.isfinite(array).all() and ((array >= 0) & (array <= 1)).all():
        return np.asarray((array * 255).round().astype(np.uint8))
    raise InputError(
        f"an image of {array.dtype} does not hold uint8, uint16, or finite floats from 0 to 1; other values need a "
        "network trained with data.window."
    )


def files_below(words: Iterable[str]) -> list[str]:
    """Return image files: the named ones, and all below the named folders, sorted."""
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
    """A batch of images that could be read, (B, H, W, C) uint8 for each form, and why others could not."""

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
                found = [pixels_of(self.images[number], form, f"image {number}") for form in self.forms]
            except Exception as error:  # damaged content makes Pillow and its codecs raise anything
                errors[number] = explain_error(error)
                continue
            good.append(number)
            for form, pixels in zip(self.forms, found, strict=True):
                parts[form].append(pixels)
        return Decoded(good, {form: torch.from_numpy(np.stack(each)) for form, each in parts.items() if each}, errors)


def decode_image(images: Sequence[AnyImage], forms: Sequence[Form], batch_size: int, workers: int) -> Iterator[Decoded]:
    """Yield batches of images in order, decoded by that many worker processes, or in this one."""
    if not 0 <= workers <= MOST_WORKERS:
        raise InputError(f"workers is {workers}; it lies between 0 and {MOST_WORKERS}.")
    loader: Any = DataLoader(
        _Images(images, forms), batch_size, num_workers=workers, collate_fn=_as_is, worker_init_fn=begin_worker,
        generator=torch.Generator(),  # else the loader draws a seed of torch's global one
    )  # fmt: skip
    yield from loader


def _as_is(batch: Any) -> Any:
    return batch
