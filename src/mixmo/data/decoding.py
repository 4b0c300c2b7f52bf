"""Decoding of image files to 8-bit pixels; docs/data.md has the conventions."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize

from mixmo.data.messages import warn_once
from mixmo.errors import InputError, reason

MAX_PIXELS = 2**26
"""Larger images are refused before their pixels are allocated."""

MAX_BYTES = 2**28
"""Larger files are refused before they are read."""

Image.init()
FORMATS = tuple(name for name in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF") if name in Image.OPEN)
"""What is read. Pillow knows more, and hands some of it (EPS) to other programs."""

BACKGROUND = (255, 255, 255)
"""White, what transparent pixels show."""

EIGHT_BITS = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
TRANSPARENT = {"RGBA", "LA", "PA", "RGBa", "La"}
FOUR_BANDS = {"CMYK", "RGBA", "RGBX"}
SAMPLES_PER_PIXEL = 277
"""The tag of a TIFF file that counts its bands."""

FEW_LEVELS = 16
"""Grey levels below which an image of 16 bits has lost most of what it shows."""

SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}


def image_pixels(
    found: Image.Image | bytes,
    channels: int,
    window: Sequence[float] | None = None,
    name: Callable[[], str] = lambda: "an image",
) -> np.ndarray:
    """Return (H, W, C) uint8: upright by its EXIF orientation, on white where transparent, 16 bits scaled to 8.

    What of an image does not reach the network is logged, once in a process.

    Args:
        found: An image, or the content of an image file; of several frames the first is taken.
        channels: C, 3 (RGB), 1 (grey), or 4, the bands of CMYK and RGBA images as they are.
        window: Values of images with 16 or 32 bits or fractions that become 0 and 255; ``None`` is all of 16 bits.
        name: Returns what it is called.

    Raises:
        InputError: if it is larger than ``MAX_PIXELS``, no image of ``FORMATS``, of 32 bits a channel or fractions
            where no window is set, or of other bands than 4 channels take.
        Exception: what Pillow raises on damaged content, of any kind.

    Example:
        >>> image_pixels(Image.new("LA", (4, 2)), 3).max()  # transparent black
        np.uint8(255)
    """
    image = _open_image(found) if isinstance(found, bytes) else found
    _check_size(image)
    _take_all_bands(image)
    image.load()
    whole_range = image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image = _apply_orientation(image)
    if whole_range or (window and image.mode in ("I", "F")):
        image = _to_eight_bits(image, window, name)
    if channels == 4:
        if image.mode not in FOUR_BANDS:
            raise InputError(f"it has Pillow's mode {image.mode}; data.channels 4 takes files of four bands")
    elif image.mode in TRANSPARENT or "transparency" in image.info:
        image = _on_background(image)
    elif image.mode not in EIGHT_BITS:
        raise InputError(
            f"it has Pillow's mode {image.mode}, whose range is not known; set --data.window '[LOW, HIGH]', the values "
            "that become black and white, or save it with 8 or 16 bits a channel"
        )
    elif image.mode in FOUR_BANDS:
        done = "which Pillow converts to colours" if image.mode == "CMYK" else "of which the fourth is left out"
        warn_once(f"{name()} has four bands, {done}; --data.channels 4 takes all of them.", about=image.mode)
    if channels != 4:
        image = image.convert("RGB" if channels == 3 else "L")
    return np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)


def _open_image(content: bytes) -> Image.Image:
    if len(content) > MAX_BYTES:
        raise too_long(len(content))
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise InputError(f"it is damaged, or none of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise _too_large() from error


def too_long(size: int) -> InputError:
    """Return the error of a file of ``size`` bytes that is not read."""
    return InputError(f"it is a file of {size / 2**20:.0f} MiB, more than the {MAX_BYTES >> 20} MiB that are read")


def _too_large() -> InputError:
    return InputError(f"it is an image of more than {MAX_PIXELS // 10**6} megapixels")


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large()
    if not image.width * image.height:
        raise InputError("it has no pixels")


def _apply_orientation(image: Image.Image) -> Image.Image:
    upright = image.copy()
    try:
        upright.getexif()
        upright.info.pop("exif", None)  # Pillow would write it anew, without the orientation, and fails at damaged tags
        ImageOps.exif_transpose(upright, in_place=True)
    except Exception:  # damaged EXIF; the pixels are all right
        return image
    return upright


def _take_all_bands(image: Image.Image) -> None:
    """Have Pillow read the fourth band of a TIFF file, which it leaves out where its meaning is not told."""
    count = getattr(image, "tag_v2", {}).get(SAMPLES_PER_PIXEL, 1)
    if not isinstance(count, int) or count <= (bands := len(image.getbands())):
        return
    if count == 4 and image.mode == "RGB" and all("RGBX" in (tile[3] or ()) for tile in image.tile):  # type: ignore[attr-defined]
        image._mode = "RGBX"
    else:
        raise InputError(f"it has {count} bands, of which Pillow reads {bands}; save those wanted")


def _to_eight_bits(image: Image.Image, window: Sequence[float] | None, name: Callable[[], str]) -> Image.Image:
    """Return grey of 8 bits: the window, or 0…65535, becomes 0…255, rounded."""
    values = np.asarray(image)
    if window is None:
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        levels = np.count_nonzero(np.bincount(grey.ravel()))
        if levels < FEW_LEVELS and levels < np.count_nonzero(np.bincount(values.ravel())):
            warn_once(
                f"{name()} has 16-bit values from {values.min()} to {values.max()}, of which {levels} of 256 grey "
                "levels are left; set --data.window '[LOW, HIGH]', between which the values of all images lie.",
                about="levels",
            )
    else:
        if np.isnan(values).any():
            raise InputError("it has values that are no numbers (NaN)")
        low, high = window
        grey = ((values.astype(np.float64) - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):
        grey[values == key] = BACKGROUND[0]
    return Image.fromarray(grey)


def _on_background(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow undoes the product with opacity in steps
        image = image.convert("LA")
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), colours)


def to_size(pixels: np.ndarray, size: tuple[int, int], interpolation: str = "bicubic") -> np.ndarray:
    """Return (h, w, C) uint8: scaled (antialiased) until it covers the input size, then cropped in its middle.

    Args:
        pixels: (H, W, C) uint8.
        size: (h, w) of the input size.
        interpolation: ``bicubic`` or ``bilinear``.

    Raises:
        InputError: if it would have to grow beyond ``MAX_PIXELS``, being narrow.

    Example:
        >>> to_size(np.zeros((10, 30, 3), np.uint8), (5, 5)).shape
        (5, 5, 3)
    """
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    scale = max(size[0] / height, size[1] / width)
    grown = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    if grown[0] * grown[1] > MAX_PIXELS:
        raise InputError(
            f"it is {height}×{width}, and would have to grow to {grown[0]}×{grown[1]} to cover the input size"
        )
    mode = InterpolationMode(interpolation)
    tensor = resize(torch.from_numpy(pixels).permute(2, 0, 1), grown, mode, antialias=True)
    cropped: np.ndarray = center_crop(tensor, list(size)).permute(1, 2, 0).numpy()
    return cropped


def starts_like_image(start: bytes) -> bool:
    """Return whether a file that starts so is an image of ``FORMATS``.

    Args:
        start: Its first ``SIGNATURE`` bytes, or all of a shorter one.

    Example:
        >>> starts_like_image(b"GIF89a..."), starts_like_image(b"name,label")
        (True, False)
    """
    if start[:2] == b"BM":
        return start[6:10] == bytes(4)
    if start[:1] == b"P":
        return start[1:2] in b"123456" and start[2:3].isspace()
    known = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return start.startswith(known) or start[8:12] == b"WEBP" or start[4:12] in (b"ftypavif", b"ftypavis")


SIGNATURE = 16
"""Bytes that tell what a file is."""


def explain_error(error: BaseException) -> str:
    """Return why an image cannot be read, in a few words.

    Example:
        >>> explain_error(MemoryError())
        'there is not enough memory for it'
        >>> explain_error(FileNotFoundError(2, "No such file or directory", "a.png"))
        'No such file or directory'
    """
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    return (error.strerror if isinstance(error, OSError) else None) or reason(error)
