"""Decoding of images to predict: files, bytes, Pillow images, arrays and tensors."""

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
from mixmo.data.decoding import COLOURS, explain_error, image_pixels, to_size
from mixmo.data.folders import SUFFIXES, read_file, walk
from mixmo.data.image_sets import as_is
from mixmo.data.workers import begin_worker
from mixmo.errors import InputError, MissingError
from mixmo.escaping import printable

AnyImage = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor


class InputFormat(NamedTuple):
    """What images a network takes: (H, W), C, and how others are converted."""

    size: tuple[int, int]
    channels: int
    interpolation: str
    window: tuple[float, ...] | None = None
    """For values of more than 8 bits: those that become 0 and 255."""


def decode_image(image: AnyImage, format: InputFormat, name: str = "an image") -> np.ndarray:
    """Decode an image to (h, w, C) uint8, upright, on white and resized, as in training.

    It is a path, the content of an image file, a Pillow image, an array (H, W), (H, W, C) or (C, H, W), or a tensor
    (C, H, W) or (H, W): uint8, uint16, or floats from 0 to 1; for a network with a window, any numbers in its units.
    ``name`` is used in errors for images without a path.

    Example:
        >>> format = InputFormat((2, 4), channels=3, interpolation="bicubic")
        >>> decode_image(torch.ones(1, 2, 4), format).shape, decode_image(np.full((2, 4), 0.5), format)[0, 0, 0]
        ((2, 4, 3), np.uint8(128))
    """
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        image = read_file(name)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        bands_last = image.dim() == 2 or (image.shape[0] not in COLOURS and image.shape[-1] in COLOURS)
        image = (image if bands_last else image.movedim(0, -1)).numpy()
    if isinstance(image, np.ndarray) and format.window is None:
        image = _to_integers(image)
    if not isinstance(image, bytes | Image.Image | np.ndarray):
        raise InputError(f"a {type(image).__name__} is not an image; give a path, bytes, PIL image, array or tensor.")
    pixels = image_pixels(image, format.channels, format.window, lambda: name, format.size)
    return to_size(pixels, format.size, format.interpolation)


def _to_integers(array: np.ndarray) -> np.ndarray:
    """Convert floats from 0 to 1 to uint8; leave uint8 and uint16 unchanged."""
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return array
    if array.dtype.kind == "f" and np.isfinite(array).all() and ((array >= 0) & (array <= 1)).all():
        return np.asarray((array * 255).round().astype(np.uint8))
    raise InputError(
        f"an image of {array.dtype} is neither uint8, uint16, nor finite floats from 0 to 1; other values need a "
        "network trained with data.window."
    )


def list_images(paths: Iterable[str]) -> list[str]:
    """Return the named files and, sorted, all image files below the named folders."""
    files: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            entries = [(os.path.join(path, file), kind) for file, kind in walk(path)]
            if not (below := sorted(file for file, kind in entries if kind == "image" or _is_broken_link(file))):
                raise MissingError(f"folder {printable(path)} holds no images.")
            files += below
        elif os.path.exists(path):
            files.append(path)
        else:
            raise MissingError(f"there is no image or folder {printable(path)}.")
    return files


def _is_broken_link(file: str) -> bool:
    """Return whether a path is a link to an image that does not exist, which is an image that cannot be read."""
    return file.lower().endswith(SUFFIXES) and os.path.islink(file) and not os.path.exists(file)


class Decoded(NamedTuple):
    """A batch of decoded images, (B, H, W, C) uint8 in each format, and why others cannot be read."""

    numbers: list[int]
    pixels: dict[InputFormat, Tensor]
    errors: dict[int, str]


class _Images(Dataset[Decoded]):
    def __init__(self, images: Sequence[AnyImage], formats: Sequence[InputFormat]) -> None:
        self.images, self.formats = images, formats

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, numbers: list[int]) -> Decoded:
        readable, errors = [], {}
        parts: dict[InputFormat, list[np.ndarray]] = {format: [] for format in self.formats}
        for number in numbers:
            try:
                versions = [decode_image(self.images[number], format, f"image {number}") for format in self.formats]
            except Exception as error:  # codecs may raise anything for damaged files
                errors[number] = explain_error(error)
                continue
            readable.append(number)
            for format, pixels in zip(self.formats, versions, strict=True):
                parts[format].append(pixels)
        stacked = {format: torch.from_numpy(np.stack(arrays)) for format, arrays in parts.items() if arrays}
        return Decoded(readable, stacked, errors)


def decode_batches(
    images: Sequence[AnyImage], formats: Sequence[InputFormat], batch_size: int, workers: int
) -> Iterator[Decoded]:
    """Yield decoded batches in order, from ``workers`` processes; 0 decodes in this one."""
    if not 0 <= workers <= MOST_WORKERS:
        raise InputError(f"workers is {workers}; it lies between 0 and {MOST_WORKERS}.")
    loader: Any = DataLoader(
        _Images(images, formats), batch_size, num_workers=workers, collate_fn=as_is, worker_init_fn=begin_worker,
        generator=torch.Generator(),  # else the loader draws a seed from torch's global generator
    )  # fmt: skip
    yield from loader
