"""Readers of formats that Pillow does not read: TIFF files of many bands, NumPy arrays, DICOM and HEIC.

Each takes the content of a file and checks the image's size before pixels are allocated. All but NumPy's need extras.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from mixmo.data.levels import check_size, max_pixels, to_bytes, too_large
from mixmo.data.messages import warn_once
from mixmo.errors import InputError, import_extra

SUFFIXES = (".npy", ".dcm", ".dicom", ".heic", ".heif")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY = b"\x93NUMPY"
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands of files that hold, or may hold, HEVC images."""

DICOM_OFFSET = 128
"""Offset of a DICOM file's magic bytes."""

SAMPLES_PER_PIXEL, BITS_PER_SAMPLE, SAMPLE_FORMAT, PLANAR, COMPRESSION, PHOTOMETRIC, ORIENTATION = (
    277, 258, 339, 284, 259, 262, 274,
)  # fmt: skip
"""Tags of TIFF files."""

OPACITY = {1, 2}
"""Values of TIFF's tag ExtraSamples for opacity."""

FOURTH_LEFT_OUT = "has four bands, of which the fourth is left out; set data.channels to 4 to keep it."


def is_dicom(start: bytes) -> bool:
    """Return whether a file that starts with these bytes is DICOM."""
    return start[DICOM_OFFSET : DICOM_OFFSET + 4] == b"DICM"


def is_heic(start: bytes) -> bool:
    """Return whether a file that starts with these bytes is or may be HEIC.

    Example:
        >>> is_heic(b"....ftypheic"), is_heic(b"....ftypavif")
        (True, False)
    """
    return start[4:8] == b"ftyp" and start[8:12] in HEIC


def exceeds_pillow(image: Image.Image, channels: int, window: Sequence[float] | None) -> bool:
    """Return whether Pillow would read a TIFF file wrongly, drop bands, or drop lower bits that a window needs.

    The pages of a file with one band per page are its bands, unless one or three channels are requested.
    """
    if not (tags := getattr(image, "tag_v2", None)):
        return False
    count, bits = tags.get(SAMPLES_PER_PIXEL, 1), tags.get(BITS_PER_SAMPLE, (1,))
    if not isinstance(count, int) or not isinstance(bits, tuple):  # damaged
        return False
    if count == 1:
        signed = bits == (8,) and tags.get(SAMPLE_FORMAT) == (2,)  # Pillow reads -1 as 255
        return signed or (channels not in (1, 3) and getattr(image, "n_frames", 1) == channels)
    planes = tags.get(PLANAR) == 2 and tags.get(COMPRESSION, 1) == 1  # of which Pillow reads bytes as pixels
    return count > len(image.getbands()) or (max(bits, default=1) > 8 and (window is not None or planes))


def read_tiff(content: bytes, channels: int, name: Callable[[], str]) -> np.ndarray:
    """Return (H, W, C) of a TIFF file: the bands of its first page, or its pages if each has one band.

    For one or three channels, a fourth band that is not marked as opacity is left out.
    """
    why = "it is a TIFF file whose bands Pillow does not read, which takes tifffile"
    library = import_extra("tifffile", "tiff", why)
    with library.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        image = page if page.samplesperpixel > 1 else file.series[0]
        axes = [axis for axis, length in zip(image.axes, image.shape, strict=True) if length > 1]
        bands = [number for number, axis in enumerate(axes) if axis not in "YX"]
        if len(bands) > 1:
            raise InputError(f"it has axes {image.axes} of shape {image.shape}; save one image per file")
        height, width = (image.shape[image.axes.index(axis)] for axis in "YX")
        count = math.prod(length for length, axis in zip(image.shape, image.axes, strict=True) if axis not in "YX")
        check_size(width, height, count)
        if math.prod(page.chunks) > 4 * max_pixels():
            raise too_large()
        values = image.asarray().squeeze()
        values = np.moveaxis(values, bands, [-1] * len(bands)).reshape(height, width, count)
        if channels in (1, 3) and count == 4 and not OPACITY & set(page.extrasamples):
            warn_once(f"{name()} {FOURTH_LEFT_OUT}", about="fourth band")
            values = values[..., :3]
        tag = page.tags.get(ORIENTATION)
        return _turn(np.asarray(values), 1 if tag is None else tag.value)


def _turn(values: np.ndarray, orientation: int) -> np.ndarray:
    """Return pixels (H, W, C) upright that are stored in an orientation of EXIF, 1 to 8.

    Example:
        >>> _turn(np.array([[[1], [2]]]), 6)[..., 0].tolist()
        [[1], [2]]
    """
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    rows, columns = (-1 if orientation in turned else 1 for turned in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return values[::rows, ::columns]


def read_npy(content: bytes) -> np.ndarray:
    """Return the array of an ``.npy`` file; Python objects are refused, not loaded."""
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))


def read_heic(content: bytes) -> Image.Image:
    """Return the primary image of a HEIC file, 8 bits per channel."""
    opened = import_extra("pillow_heif", "heic", "it is a HEIC file, which takes pillow_heif").open_heif(content)
    check_size(*opened.size)
    image: Image.Image = opened.to_pillow()
    return image


def read_dicom(content: bytes, window: Sequence[float] | None, name: Callable[[], str]) -> np.ndarray:
    """Return the first frame of a DICOM file, grey (H, W) uint8 or colours (H, W, 3).

    The file's rescaling or modality table converts grey values to units (such as Hounsfield). In these, ``window``
    becomes 8 bits; without one, the file's first window, else its VOI table, else the whole range that its bits can
    store. MONOCHROME1, whose low values are bright, is inverted. YBR and palette colours become RGB.
    """
    library = import_extra("pydicom", "dicom", "it is a DICOM file, which takes pydicom")
    pixels: Any = import_module("pydicom.pixels")
    file = library.dcmread(io.BytesIO(content))
    if "PixelData" not in file:
        raise InputError("it is a DICOM file without an image")
    check_size(file.Columns, file.Rows, file.SamplesPerPixel)
    values, kind = pixels.pixel_array(file, index=0), file.PhotometricInterpretation
    if not kind.startswith("MONOCHROME"):
        values = np.asarray(pixels.apply_color_lut(values, file) if kind == "PALETTE COLOR" else values)
        return to_bytes(values, None, name)
    _complete_rescaling(file)
    lowest = -(2 ** (file.BitsStored - 1)) if file.PixelRepresentation else 0
    whole = pixels.apply_modality_lut(np.array([lowest, lowest + 2**file.BitsStored - 1]), file)
    values = pixels.apply_modality_lut(values, file)
    if window is None and file.get("WindowWidth") and file.get("WindowCenter"):  # neither missing nor blank
        for key in ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"):  # already applied
            file.pop(key, None)
        file.BitsStored, file.PixelRepresentation = 8, 0  # the range that apply_windowing scales to
        grey = pixels.apply_windowing(values, file).round().astype(np.uint8)
    elif window is None and file.get("VOILUTSequence"):
        largest = 2 ** file.VOILUTSequence[0].LUTDescriptor[2] - 1
        shown = pixels.apply_voi(values.astype(np.int64), file).astype(np.float64)
        grey = to_bytes(shown, (0, largest), name, "its table leaves")
    elif window is None:
        grey = to_bytes(
            values.astype(np.float64), (whole.min(), whole.max()), name, "the whole range of its bits leaves"
        )
    else:
        grey = to_bytes(values.astype(np.float64), window, name)
    return np.asarray(255 - grey if kind == "MONOCHROME1" else grey)


def _complete_rescaling(file: Any) -> None:
    """Set a DICOM file's rescaling and window where pydicom looks for them: those of frames, and missing halves."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in (file.get(groups) or ())[:1]:
            for key in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in group.get(key) or ():
                    file.update(item)
    if "RescaleSlope" in file or "RescaleIntercept" in file:
        file.RescaleSlope, file.RescaleIntercept = file.get("RescaleSlope") or 1, file.get("RescaleIntercept") or 0
