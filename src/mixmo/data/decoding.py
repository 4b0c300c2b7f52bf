"""Decoding of image files to 8-bit pixels, with the conventions of docs/data.md."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize

from mixmo.data.levels import check_length, check_size, max_pixels, to_bytes, too_large
from mixmo.data.messages import warn_once
from mixmo.data.special_formats import (
    DICOM_OFFSET,
    FOURTH_LEFT_OUT,
    NPY,
    PHOTOMETRIC,
    TIFF,
    exceeds_pillow,
    is_dicom,
    is_heic,
    read_dicom,
    read_heic,
    read_npy,
    read_tiff,
)
from mixmo.errors import InputError, reason

Image.init()
FORMATS = tuple(name for name in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF") if name in Image.OPEN)
"""Formats read by Pillow. It supports more, but runs other programs for some (EPS)."""

BACKGROUND = (255, 255, 255)
"""White, behind transparent pixels."""

EIGHT_BITS = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
TRANSPARENT = {"RGBA", "LA", "PA", "RGBa", "La"}
FOUR_BANDS = {"CMYK", "RGBA", "RGBX"}
RAW_MODES = {2: {"LA"}, 4: FOUR_BANDS}
"""Modes whose bands are not converted, by the number of channels."""

SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}

COLOURS = (1, 3, 4)
"""Numbers of bands of grey, RGB and RGBA images."""


def image_pixels(
    image: Image.Image | np.ndarray | bytes,
    channels: int,
    window: Sequence[float] | None = None,
    name: Callable[[], str] = lambda: "an image",
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Return an image as (H, W, C) uint8: rotated as its EXIF says, on white where transparent, scaled to 8 bits.

    A warning is logged, once per run, if this loses information.

    Args:
        image: An image, an array for :func:`arrange_bands`, or the content of an image file, of whose frames the first
            is used.
        channels: C, 3 (RGB), 1 (grey), or the image's number of bands, which are then not converted.
        window: Values that become 0 and 255 in images of more than 8 bits; ``None`` is the whole range of 16 bits, or
            a DICOM file's own window.
        name: Returns the image's name, for messages.
        size: (h, w) that :func:`to_size` will scale to: a JPEG of more than ``max_pixels()`` is decoded at 1/2, 1/4 or
            1/8 of its size, if that is at least twice as large.

    Raises:
        Exception: An InputError, or any error of Pillow and the other libraries on damaged content.

    Example:
        >>> image_pixels(Image.new("LA", (4, 2)), 3).max()  # transparent black
        np.uint8(255)
        >>> image_pixels(np.full((13, 2, 4), 65535, np.uint16), 13).shape
        (2, 4, 13)
    """
    image = _open_image(image, channels, window, name, size) if isinstance(image, bytes) else image
    if isinstance(image, np.ndarray):
        values = arrange_bands(image, channels)
        check_size(values.shape[1], values.shape[0], values.shape[2])
        pixels = to_bytes(values, window, name)
        if pixels.shape[2] == channels:
            return np.array(pixels, order="C")
        if pixels.shape[2] == 4:
            text = "has four bands; the fourth is used as opacity; if it is not, set data.channels to 4."
            warn_once(f"{name()} {text}", about="opacity")
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    check_size(*image.size)
    halved, window = _fit_window(image, window)
    is_negative = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0  # which Pillow inverts only if it has 8 bits
    image.load()
    largest = max(high for _, high in image.getextrema()[:3]) if halved else 0  # type: ignore[misc]
    whole_range = image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image = _apply_orientation(image)
    if whole_range or (window and image.mode in ("I", "F")):
        image = _to_eight_bits(image, whole_range, window, name)
        image = ImageOps.invert(image) if is_negative else image
    if channels in (1, 3):
        image = _to_colours(image, channels, name)
    elif image.mode not in RAW_MODES.get(channels, ()):
        bands = image.getbands()
        raise InputError(
            f"it has the bands {', '.join(bands)}, but data.channels is {channels}; set it to {len(bands)}"
        )
    pixels = np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)
    if 0 < largest < 16:
        warn_once(
            f"{name()} has bands of 16 bits, of which Pillow reads the upper 8, and these are {largest} at most; save "
            "it as a TIFF file and set data.window to [LOW, HIGH] to the range of all images' values.",
            about="levels",
        )
    return pixels


def _fit_window(image: Image.Image, window: Sequence[float] | None) -> tuple[bool, Sequence[float] | None]:
    """Return whether Pillow reads only the upper 8 of 16 bits, and the window in the units that it reads."""
    tiles: list[Any] = getattr(image, "tile", [])
    halved = any(";16" in str(tile[3]) for tile in tiles)
    if tiles and tiles[0][0].startswith("ppm") and isinstance(tiles[0][3], tuple):  # scaled from 0…largest
        largest = tiles[0][3][1]
        halved |= largest > 255
        window = window and [value * 65535 / largest for value in window]
    halved &= len(image.getbands()) > 1
    if halved and window:
        raise InputError(
            "it has several bands of 16 bits, of which Pillow reads the upper 8, so data.window does not apply; save "
            "it as a TIFF file"
        )
    return halved, window


def _to_colours(image: Image.Image, channels: int, name: Callable[[], str]) -> Image.Image:
    """Convert an 8-bit image to grey or RGB."""
    if image.mode in TRANSPARENT or "transparency" in image.info:
        image = image.convert("LA") if image.mode == "La" else image  # Pillow cannot convert La to RGBA at once
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image.convert("RGBA"))
    elif image.mode not in EIGHT_BITS:
        raise InputError(
            f"it has Pillow's mode {image.mode}, whose range is not known; set data.window to [LOW, HIGH], the values "
            "that become black and white, or save it with 8 or 16 bits per channel"
        )
    elif image.mode in FOUR_BANDS:
        converted = "has four bands, which Pillow converts to colours; set data.channels to 4 to keep them."
        text, about = (converted, "CMYK") if image.mode == "CMYK" else (FOURTH_LEFT_OUT, "fourth band")
        warn_once(f"{name()} {text}", about)
    return image.convert("RGB" if channels == 3 else "L")


def arrange_bands(values: np.ndarray, channels: int) -> np.ndarray:
    """Return an array (H, W), (H, W, C) or (C, H, W) as (H, W, C).

    The bands are the last axis if it has ``channels`` entries, else the first. For 1 and 3 channels an axis of 1, 3 or
    4 entries (grey, RGB or RGBA) is accepted, too.

    Example:
        >>> arrange_bands(np.zeros((13, 8, 6)), 13).shape, arrange_bands(np.zeros((8, 6)), 3).shape
        ((8, 6, 13), (8, 6, 1))
    """
    shaped = values[..., None] if values.ndim == 2 else values
    for wanted in ((channels,), COLOURS) if channels in (1, 3) else ((channels,),):
        for axis in (2, 0) if shaped.ndim == 3 else ():
            if shaped.shape[axis] in wanted:
                return np.moveaxis(shaped, axis, 2)
    raise InputError(
        f"it has shape {values.shape}, whose bands do not match data.channels, {channels}; set that to their number"
    )


def _open_image(
    content: bytes,
    channels: int,
    window: Sequence[float] | None,
    name: Callable[[], str],
    size: tuple[int, int] | None,
) -> Image.Image | np.ndarray:
    check_length(len(content))
    if content.startswith(NPY):
        return read_npy(content)
    if is_dicom(content):
        return read_dicom(content, window, name)
    if channels > 4 and content.startswith(TIFF):  # Pillow would log an error for each
        return read_tiff(content, channels, name)
    limit = max_pixels()
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        if content.startswith(TIFF):
            return read_tiff(content, channels, name)
        if is_heic(content):
            return read_heic(content)
        raise InputError(f"it is damaged, or not one of {', '.join(FORMATS)}, NPY, DICOM, HEIC") from error
    except Image.DecompressionBombError as error:
        if not content.startswith(b"\xff\xd8\xff"):
            raise too_large() from error
        image = JpegImageFile(io.BytesIO(content))
    tiles = image.tile if image.mode == "RGB" and image.format == "TIFF" else ()  # type: ignore[attr-defined]
    if tiles and all("RGBX" in (tile[3] or ()) for tile in tiles):  # Pillow would drop the fourth band
        image._mode = "RGBX"
    if exceeds_pillow(image, channels, window):
        return read_tiff(content, channels, name)
    # Pillow holds all of a progressive JPEG in memory, at any scale.
    reducible = isinstance(image, JpegImageFile) and "progressive" not in image.info
    if size is not None and image.width * image.height > limit and reducible:
        scale = 2 * max(size) / min(image.size)
        image.draft(None, (math.ceil(scale * image.width), math.ceil(scale * image.height)))  # type: ignore[arg-type]
    return image


def _apply_orientation(image: Image.Image) -> Image.Image:
    upright = image.copy()
    try:
        upright.getexif()
        upright.info.pop("exif", None)  # Pillow would rewrite it without the orientation, and fail on damaged tags
        ImageOps.exif_transpose(upright, in_place=True)
    except Exception:  # damaged EXIF; the pixels are fine
        return image
    return upright


def _to_eight_bits(
    image: Image.Image, whole_range: bool, window: Sequence[float] | None, name: Callable[[], str]
) -> Image.Image:
    """Map the window, or 0…65535, to 8-bit grey."""
    values = np.asarray(image)
    grey = np.array(to_bytes(values.astype(np.uint16) if whole_range else values, window, name))
    if isinstance(key := image.info.get("transparency"), int):
        grey[values == key] = BACKGROUND[0]
    return Image.fromarray(grey)


def to_size(pixels: np.ndarray, size: tuple[int, int], interpolation: str = "bicubic") -> np.ndarray:
    """Scale (antialiased) pixels (H, W, C) uint8 to cover the size (h, w), then crop their centre.

    Example:
        >>> to_size(np.zeros((10, 30, 3), np.uint8), (5, 5)).shape
        (5, 5, 3)
    """
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    scale = max(size[0] / height, size[1] / width)
    scaled = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    if scaled[0] * scaled[1] > max_pixels():
        raise InputError(
            f"it is {height}×{width}, and would have to be scaled to {scaled[0]}×{scaled[1]} to cover the input size"
        )
    mode = InterpolationMode(interpolation)
    writable = np.require(pixels, requirements="W")  # torch warns of read-only arrays
    parts = torch.from_numpy(writable).permute(2, 0, 1).split(4)  # torch is much faster with up to four bands
    tensor = torch.cat([resize(part, scaled, mode, antialias=True) for part in parts])
    return np.ascontiguousarray(center_crop(tensor, list(size)).permute(1, 2, 0).numpy())


def starts_like_image(start: bytes) -> bool:
    """Return whether a file's first ``SIGNATURE`` bytes (fewer if it is shorter) are of a supported image format.

    Example:
        >>> starts_like_image(b"GIF89a..."), starts_like_image(b"name,label")
        (True, False)
    """
    if start[:2] == b"BM":
        return start[6:10] == bytes(4)
    if start[:1] == b"P":
        return start[1:2] in b"123456" and start[2:3].isspace()
    signatures = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", NPY, *TIFF)
    if start.startswith(signatures) or start[8:12] == b"WEBP" or start[4:12] in (b"ftypavif", b"ftypavis"):
        return True
    return is_heic(start) or is_dicom(start)


SIGNATURE = DICOM_OFFSET + 4
"""Number of bytes that identify a file's format."""


def explain_error(error: BaseException) -> str:
    """Return a short reason why an image cannot be read.

    Example:
        >>> explain_error(MemoryError())
        'there is not enough memory for it'
        >>> explain_error(FileNotFoundError(2, "No such file or directory", "a.png"))
        'No such file or directory'
    """
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    return (error.strerror if isinstance(error, OSError) else None) or reason(error)
