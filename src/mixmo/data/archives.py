"""Zip and tar files of class folders, unpacked once into the user's cache."""

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
    """Return a folder that has the content of each archive, zip or tar, in a folder of the archive's name.

    It is in the user's cache, and reused while names, sizes and times of the archives are the same.
    """
    about = [part for each in archives for part in (os.path.abspath(each), stamp(str(each), times=True))]
    kept = cache_folder("unpacked") / hash_parts(about)
    make_folder(kept.parent)
    with explain_write_errors(kept), FileLock(f"{kept}.lock"):
        if not kept.is_dir():
            with tempfile.TemporaryDirectory(dir=kept.parent) as made:
                for archive in archives:
                    _extract(archive, Path(made, "content", archive.name))
                os.rename(Path(made, "content"), kept)
    return kept


def _extract(archive: Path, folder: Path) -> None:
    logger.info("unpacking %s into the cache, once", printable(str(archive)))
    try:
        if archive.suffix.lower() == ZIP:
            shutil.unpack_archive(archive, folder, "zip")
        else:
            shutil.unpack_archive(archive, folder, "tar", filter="data")
    except Exception as error:  # each format and each compression has errors of its own
        raise InputError(
            f"{printable(str(archive))} cannot be unpacked into {printable(str(folder.parents[2]))}: "
            f"{explain_error(error).replace(str(archive), 'it')}; unpack it into a folder of your own, and name that."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)  # of an empty archive, too
