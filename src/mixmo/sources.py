"""Where labelled images come from: scikit-learn's digits, timm's dataset names, folders and tar files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm.data
import torch
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize

from mixmo.errors import InputError, MissingError, one_of

TEST_FOLDERS = ("test", "val", "validation")
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "La", "RGBa"}
"""Pillow's modes of 8 bits a channel, those that convert to RGB or grey without guessing a range."""


JPEG_MAGIC = b"\xff\xd8\xff"


@dataclass(frozen=True)
class Source:
    """Labelled images that can be read one by one.

    Attributes:
        labels: (N,) class numbers, int64.
        classes: The K class names, in the order of their numbers.
        read: Returns the i-th image, or the content of its file.
        name: Says what the i-th image is called, for errors.
    """

    labels: np.ndarray
    classes: list[str]
    read: Callable[[int], Image.Image | bytes]
    name: Callable[[int], str]

    def subset(self, chosen: np.ndarray) -> Source:
        """Return the source of some of the images.

        Args:
            chosen: Their numbers, in the order wanted.
        """
        return Source(self.labels[chosen], self.classes, lambda i: self.read(chosen[i]), lambda i: self.name(chosen[i]))


def open_source(name: str, split: str, root: str = "data", download: bool = False) -> Source:
    """Open one split of a dataset.

    Args:
        name: ``digits`` (scikit-learn's, 8×8); ``folder:PATH`` with PATH/train and PATH/test (or val), each
            class folders, or tar files of such (``train.tar``, shards ``train-0.tar.gz`` …); or a name that
            timm knows: ``torch/cifar10``, ``torch/cifar100``, ``hfds/…``.
        split: ``train`` or ``test``.
        root: Where timm's datasets lie or are downloaded to.
        download: Whether a missing dataset may be downloaded.

    Raises:
        MissingError: if the path is missing or empty.
        InputError: if the name is unknown, or there are fewer than two classes.

    Example:
        >>> source = open_source("digits", "test")
        >>> len(source.labels), source.read(0).size
        (360, (8, 8))
    """
    one_of(split, ("train", "test"), "split")
    if name == "digits":
        source = _open_digits(split)
    elif name.startswith("folder:"):
        source = _open_folder(Path(name.removeprefix("folder:")).expanduser(), split)
    elif name.partition("/")[0] in ("torch", "hfds"):
        source = _open_timm(name, split, root, download)
    else:
        raise InputError(f"unknown dataset {name!r}; it is digits, folder:PATH, torch/… or hfds/….")
    if len(source.classes) < 2:
        raise InputError(
            f"dataset {name!r} has one class only ({', '.join(source.classes)}); a classifier needs two or more."
        )
    if not len(source.labels):
        raise MissingError(f"dataset {name!r} has no images in its {split} split.")
    return source


def _open_digits(split: str) -> Source:
    """Return scikit-learn's 8×8 digits, one fifth held out for testing."""
    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
    chosen = train if split == "train" else test
    return Source(
        digits.target[chosen].astype(np.int64),
        [str(digit) for digit in digits.target_names],
        lambda i: Image.fromarray(images[chosen[i]]),
        lambda i: f"digit {chosen[i]}",
    )


def _open_timm(name: str, split: str, root: str, download: bool) -> Source:
    """Return a dataset of torchvision or Hugging Face by timm's name."""
    known_errors = (RuntimeError, AssertionError, OSError, ImportError, ValueError, KeyError)  # whatever they raise
    try:
        dataset = timm.data.create_dataset(name, root=root, split=split, download=download)
    except known_errors as error:
        advice = "" if download else "; allow it to be fetched with --data.download true, or set --data.root"
        raise MissingError(f"dataset {name!r} cannot be opened in {root!r}: {error}{advice}.") from error
    labels = getattr(dataset, "targets", None)
    if labels is None:  # no labels without the images: read them once
        labels = [int(dataset[i][1]) for i in range(len(dataset))]
    labels = np.asarray(labels, dtype=np.int64)
    classes = getattr(dataset, "classes", None) or [str(k) for k in range(int(labels.max()) + 1)]
    return Source(labels, [str(c) for c in classes], lambda i: dataset[i][0], lambda i: f"{name} {split} image {i}")


def _open_folder(path: Path, split: str) -> Source:
    """Return PATH/train or PATH/test, as class folders or as tar files of class folders."""
    if not path.is_dir():
        raise MissingError(f"there is no dataset folder {path}.")
    for folder in ("train",) if split == "train" else TEST_FOLDERS:
        if (path / folder).is_dir():
            return _class_folders(path / folder)
        archives = sorted([*path.glob(f"{folder}.tar*"), *path.glob(f"{folder}-*.tar*")])
        if archives:
            return _tar_files(archives)
    wanted = "train" if split == "train" else " or ".join(TEST_FOLDERS)
    raise MissingError(f"{path} has neither a folder nor a tar file named {wanted}.")


def _class_folders(folder: Path) -> Source:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in IMG_EXTENSIONS
    ]
    _check_filled(classes, {label for _, label in files}, str(folder))
    return Source(
        np.array([label for _, label in files], dtype=np.int64),
        classes,
        lambda i: files[i][0].read_bytes(),
        lambda i: str(files[i][0]),
    )


def _tar_files(archives: list[Path]) -> Source:
    """Hold the encoded images of tar files in memory: compressed tars cannot be read at random."""
    found: list[tuple[str, str, bytes]] = []
    for archive in archives:
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    parts = Path(member.name).parts
                    if member.isfile() and len(parts) > 1 and Path(member.name).suffix.lower() in IMG_EXTENSIONS:
                        content = tar.extractfile(member)
                        found.append((parts[-2], f"{archive}/{member.name}", content.read() if content else b""))
        except (tarfile.TarError, EOFError, OSError) as error:
            raise InputError(f"{archive} cannot be read as a tar file: {error}") from error
    found.sort(key=lambda entry: entry[:2])
    classes = sorted({name for name, _, _ in found})
    numbers = {name: number for number, name in enumerate(classes)}
    _check_filled(classes, set(numbers.values()), ", ".join(map(str, archives)))
    return Source(
        np.array([numbers[name] for name, _, _ in found], dtype=np.int64),
        classes,
        lambda i: found[i][2],
        lambda i: found[i][1],
    )


def _check_filled(classes: list[str], filled: set[int], where: str) -> None:
    if not classes or not filled:
        raise MissingError(f"{where} holds no images; it needs one folder for each class, with images in it.")
    empty = [name for label, name in enumerate(classes) if label not in filled]
    if empty:
        raise InputError(f"{where}: class {empty[0]!r} has no images; remove the empty folder or fill it.")


def decode(source: Source, index: int, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Return one image as uint8 (H, W, C): converted to C channels and brought onto the canvas.

    An image of another size is scaled (bicubic, antialiased) until it covers the canvas, then cropped in its middle.

    Args:
        source: Where the image is.
        index: Which image.
        size: (H, W) of the canvas; ``None`` takes the image as it is.
        channels: 3 (RGB) or 1 (grey).

    Raises:
        InputError: if the image cannot be read or has more than 8 bits a channel; it is named.
    """
    try:
        pixels = _pixels(source.read(index), channels)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, RuntimeError) as error:
        raise InputError(f"image {source.name(index)} cannot be read: {error}") from error
    if size is not None and pixels.shape[1:] != size:
        scale = max(wanted / side for wanted, side in zip(size, pixels.shape[1:], strict=True))
        grown = [max(wanted, round(side * scale)) for wanted, side in zip(size, pixels.shape[1:], strict=True)]
        pixels = center_crop(resize(pixels, grown, InterpolationMode.BICUBIC, antialias=True), list(size))
    return pixels.permute(1, 2, 0).numpy()


def _pixels(found: Image.Image | bytes, channels: int) -> Tensor:
    """Return (C, H, W) uint8 of an image, or of the content of its file."""
    if isinstance(found, bytes):
        if found.startswith(JPEG_MAGIC):  # torchvision's libjpeg-turbo takes half of Pillow's time
            mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
            jpeg: Tensor = decode_jpeg(torch.frombuffer(bytearray(found), dtype=torch.uint8), mode)
            return jpeg
        found = Image.open(io.BytesIO(found))
    if found.mode not in MODES:
        raise InputError(f"it has Pillow's mode {found.mode}; save it with 8 bits a channel.")
    image = np.array(found.convert("RGB" if channels == 3 else "L"), dtype=np.uint8)
    return torch.from_numpy(image.reshape(found.height, found.width, channels)).permute(2, 0, 1)
