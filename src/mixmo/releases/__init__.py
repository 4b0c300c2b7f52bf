"""Trained runs shipped with the package, to try prediction, evaluation and export without training.

``digits-cut`` is the folder written by ``mixmo fit digits-cut``, plus an image of its test set, ``digit.png``.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from mixmo.errors import InputError, one_of
from mixmo.files import assemble, make_folder

FOLDER = Path(__file__).parent
RELEASES = tuple(sorted(file.stem for file in FOLDER.glob("*.zip")))
"""Recipes with a shipped run."""


def unpack_release(name: str, folder: Path) -> None:
    """Unpack a shipped run, one of :data:`RELEASES`, into a new folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     unpack_release("digits-cut", Path(folder, "run"))
        ...     Path(folder, "run", "checkpoints", "last.ckpt").is_file()
        True
    """
    one_of(name, RELEASES, "released run")
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists already; choose another folder with --run.")
    make_folder(folder.parent)
    with assemble(folder) as path, zipfile.ZipFile(FOLDER / f"{name}.zip") as archive:
        archive.extractall(path)
