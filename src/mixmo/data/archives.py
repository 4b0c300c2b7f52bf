"""Unpacking of zip and tar files of class folders into the user's cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from mixmo.cache import cache_folder
from mixmo.data.decoding import explain_error
from mixmo.data.messages import logger
from mixmo.data.sources import hash_parts, stamp
from mixmo.errors import InputError
from mixmo.escaping import printable
from mixmo.files import explain_write_errors, make_folder

ZIP = ".zip"


def unpack(archives: Sequence[Path]) -> Path:
    """Unpack archives into subfolders of their names, and return the folder that holds these.

    The folder is in the user's cache, and reused while the archives' paths, sizes and modification times are the same.
    """
    key = [part for archive in archives for part in (os.path.abspath(archive), stamp(str(archive), times=True))]
    folder = cache_folder("unpacked") / hash_parts(key)
    make_folder(folder.parent)
    with explain_write_errors(folder), FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                for archive in archives:
                    _extract(archive, Path(temporary, "content", archive.name))
                os.rename(Path(temporary, "content"), folder)
    return folder


def _extract(archive: Path, folder: Path) -> None:
    logger.info("unpacking %s into the cache", printable(str(archive)))
    try:
        if archive.suffix.lower() == ZIP:
            shutil.unpack_archive(archive, folder, "zip")
        else:
            shutil.unpack_archive(archive, folder, "tar", filter="data")
    except Exception as error:  # depends on the format and the compression
        raise InputError(
            f"{printable(str(archive))} cannot be unpacked into {printable(str(folder.parents[2]))}: "
            f"{explain_error(error).replace(str(archive), 'it')}; unpack it yourself and give the folder."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)  # an empty archive makes none
