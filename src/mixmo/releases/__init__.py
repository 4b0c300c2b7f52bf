"""Trained runs that come with the package, to try prediction, evaluation and export without training.

``digits-cut`` is the folder that ``mixmo fit digits-cut`` writes, with an image of its test set, ``digit.png``.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from mixmo.errors import InputError, one_of
from mixmo.files import assemble, make_folder

FOLDER = Path(__file__).parent
RELEASES = tuple(sorted(file.stem for file in FOLDER.glob("*.zip")))
"""The recipes with a trained run in the package."""


def unpack_release(name: str, folder: Path) -> None:
    """Write a released run, one of :data:`RELEASES`, into a new folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as place:
        ...     unpack_release("digits-cut", Path(place, "run"))
        ...     Path(place, "run", "checkpoints", "last.ckpt").is_file()
        True
    """
    one_of(name, RELEASES, "released run")
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists already; choose another place with --run.")
    make_folder(folder.parent)
    with assemble(folder) as place, zipfile.ZipFile(FOLDER / f"{name}.zip") as archive:
        archive.extractall(place)
