"""Predictions in NumPy files of other programs, checked before anything is allocated."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from mixmo.errors import InputError, MissingError, reason
from mixmo.files import check_regular

LARGEST = 8 * 2**30
"""Bytes that the arrays of a file may have together."""

SMALL, EXPANSION = 256 * 2**20, 200
"""An array of more than ``SMALL`` bytes may not expand more than this from the bytes it takes in the file."""


def read_npz(file: str | Path, wanted: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return some arrays of an ``.npz`` file, and the names of all it holds.

    Args:
        file: The file.
        wanted: Names; those that the file lacks are left out.

    Raises:
        MissingError: if there is no such file.
        InputError: if it is damaged, holds Python objects, or declares more than there can be in it.

    Example:
        >>> read_npz("nowhere.npz", ["logits"])
        Traceback (most recent call last):
        mixmo.errors.MissingError: there is no file nowhere.npz.
    """
    if not Path(file).is_file():
        raise MissingError(f"there is no file {file}.")
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            members = {name: archive.getinfo(f"{name}.npy") for name in wanted if name in names}
            _check_sizes(file, members)
            return {name: _read_member(archive, info) for name, info in members.items()}, names
    except InputError:
        raise
    except Exception as error:  # zipfile and NumPy may raise anything for damaged bytes
        raise InputError(f"{file} cannot be read as an .npz file: {reason(error)}.") from error


def open_npy(file: Path) -> np.ndarray:
    """Return the array of an ``.npy`` file, which stays on the disk until it is read.

    Raises:
        InputError: if the file is missing, damaged or holds Python objects.
    """
    try:
        check_regular(file)
        return np.asarray(npy.open_memmap(file, mode="r"))
    except Exception as error:  # NumPy may raise anything for damaged bytes
        raise InputError(f"{file} cannot be read as an .npy file: {reason(error)}.") from error


def _check_sizes(file: str | Path, members: dict[str, zipfile.ZipInfo]) -> None:
    total = sum(info.file_size for info in members.values())
    if total > LARGEST:
        raise InputError(
            f"{file} declares arrays of {total / 2**30:.1f} GiB; the limit is {LARGEST // 2**30} GiB, so evaluate "
            "fewer images at a time."
        )
    for name, info in members.items():
        if info.file_size > max(SMALL, EXPANSION * info.compress_size):
            raise InputError(
                f"{file} declares {info.file_size} bytes for {name!r} but holds {info.compress_size}; an array that "
                "is so compressed is refused: save it with numpy.savez."
            )


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Return an array whose header declares just the bytes that follow it."""
    with archive.open(info) as content:
        version = npy.read_magic(content)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{info.filename} has format version {version}, not (1, 0) or (2, 0)")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(content)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds Python objects, not numbers or names")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != info.file_size - content.tell():
            raise ValueError(f"{info.filename} does not hold the {dtype} of shape {shape} that it declares")
        content.seek(0)
        array: np.ndarray = npy.read_array(content, allow_pickle=False)
        return array
