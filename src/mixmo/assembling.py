"""Atomic replacement of files and folders."""

from __future__ import annotations

import ctypes
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mixmo.files import PARTIAL, explain_write_errors, sync_folder

LOCK, EARLIER = ".lock", "earlier"
"""What stands in a hidden folder next to the thing that is made there."""

AT_FDCWD, EXCHANGE = -100, 2
"""Arguments of ``renameat2``."""


@contextmanager
def assemble(path: Path) -> Iterator[Path]:
    """Give a hidden place to make a file or a folder in, which takes the place of another once the block ends.

    Until then what was there stays, and of a block that fails nothing is left. A killed process may leave a hidden
    folder, which the next call of :func:`restore` or of this function for the same path removes.

    Args:
        path: The file or folder; its parent exists.

    Raises:
        InputError: if it cannot be written.
    """
    with explain_write_errors(path):
        restore(path)
        hidden, lock = _hide(path)
        try:
            yield hidden / path.name
            _take_place(hidden / path.name, path)
        finally:
            lock.release()
            with suppress(OSError):
                _remove(hidden)


def _hide(path: Path) -> tuple[Path, FileLock]:
    """Return a new hidden folder next to a path, and the lock in it, which is held as long as this process lives."""
    while True:
        hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        hidden.mkdir()
        lock = FileLock(hidden / LOCK)
        with suppress(FileNotFoundError, FileExistsError):  # from making its folder, where that has just gone
            lock.acquire()
        if (hidden / LOCK).is_file():
            return hidden, lock
        lock.release()  # another process took the folder for one that a killed process left, before it was locked


def _remove(hidden: Path) -> None:
    """Remove a hidden folder, its lock last: without one only an empty folder is known as ours."""
    for each in hidden.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        elif each.name != LOCK:
            each.unlink()
    shutil.rmtree(hidden)


def restore(path: Path) -> None:
    """Remove what killed processes left of :func:`assemble`; bring back a folder that they had moved away."""
    for hidden in path.parent.glob(f".{glob.escape(path.name)}.????????{PARTIAL}/"):
        with suppress(OSError, Timeout):  # else another process is at work
            if not (hidden / LOCK).is_file() and any(hidden.iterdir()):  # not made by us
                continue
            with FileLock(hidden / LOCK, timeout=0):
                if (hidden / EARLIER).exists() and not os.path.lexists(path):
                    (hidden / EARLIER).rename(path)
                _remove(hidden)


def _take_place(made: Path, path: Path) -> None:
    """Have what was made take the place of a file or a folder, in one step where the system can do that."""
    for file in made.rglob("*") if made.is_dir() else [made]:
        with file.open("rb") as content:
            os.fsync(content.fileno())
    if not path.is_dir() or path.is_symlink():
        made.replace(path)
    elif not _exchange(made, path):
        earlier = made.with_name(EARLIER)
        path.rename(earlier)
        try:
            made.rename(path)
        except OSError:
            earlier.rename(path)
            raise
    sync_folder(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; return whether that could be done (Linux, on most disks)."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(call(AT_FDCWD, os.fsencode(one.absolute()), AT_FDCWD, os.fsencode(other.absolute()), EXCHANGE) == 0)
