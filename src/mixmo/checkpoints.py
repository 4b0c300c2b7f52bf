"""Checkpoints: written atomically, with a digest, and read without executing any code."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

from mixmo.errors import InputError, MissingError
from mixmo.files import PARTIAL, explain_write_errors, read_checkpoint, replace_file, sync_folder

MARK = b"sha256:"
SEAL = len(MARK) + 64
"""Bytes of the mark and the hexadecimal digest, which form the comment of the zip file that torch writes."""

KEYS = ("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "optimizer_states", "header",
        "unfinished", "MixedPrecision")  # fmt: skip
"""What is read from a checkpoint, the float16 loss scale included (``MixedPrecision``, Lightning's name)."""

STATE = "Checkpoints"
"""The one callback whose state is read too: :class:`mixmo.training.checkpointing.Checkpoints`."""

LAST, PREVIOUS, BEST = (f"{name}.ckpt" for name in ("last", "previous", "best"))


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all, with a SHA-256 digest of it at its end."""
    with replace_file(path) as file:
        writer = _Writer(file)
        try:
            torch.save(dict(content), writer)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise writer.error or error from error
        file.seek(-2, os.SEEK_END)
        file.write(SEAL.to_bytes(2, "little"))  # the length of the comment, which ends a zip file
        seal = digest(file, file.tell())
        file.write(MARK + seal.encode())


class _Writer:
    """A file that remembers why it could not be written: torch only says that it could not."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write bytes."""
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Flush all bytes."""
        self.file.flush()


def load(path: Path) -> dict[str, Any]:
    """Return the content of a mixmo checkpoint, on the CPU, after checking its digest.

    Only tensors and plain values are read, and only of the keys that training resumes from: a checkpoint can hold no
    path to delete and no name to import.
    """
    if not path.is_file():
        raise MissingError(f"there is no checkpoint at {path}.")
    size = path.stat().st_size - SEAL
    with path.open("rb") as file:
        file.seek(max(size, 0))
        seal = file.read()
        if not seal.startswith(MARK) or seal[len(MARK) :].decode("ascii", "replace") != digest(file, size):
            raise InputError(f"{path} is damaged: its content does not have the digest that was written with it.")
    content = read_checkpoint(path)
    kept = {key: content[key] for key in KEYS if key in content}
    if not isinstance(kept.get("epoch"), int) or not isinstance(kept.get("state_dict"), dict):
        raise InputError(f"{path} is not a checkpoint of mixmo's: it has no epoch or no weights.")
    kept.setdefault("pytorch-lightning_version", version("lightning"))
    callbacks = content.get("callbacks")
    own = callbacks.get(STATE) if isinstance(callbacks, dict) else None
    kept["callbacks"] = {}
    if isinstance(own, dict):
        kept["callbacks"][STATE] = {key: value for key, value in own.items() if isinstance(value, int | float)}
    return kept


def describe(path: Path) -> dict[str, Any]:
    """Return a checkpoint's ``header`` and its number of finished ``epochs``; read once while the file is unchanged."""
    if not path.is_file():
        raise MissingError(f"there is no checkpoint at {path}.")
    status = path.stat()
    return _describe_file(path, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _describe_file(path: Path, inode: int, size: int, time: int) -> dict[str, Any]:
    content = load(path)
    return {"header": content.get("header"), "epochs": finished_epochs(content)}


def finished_epochs(content: Mapping[str, Any]) -> int:
    """Return how many epochs a checkpoint's training had finished; one may have been begun.

    Example:
        >>> finished_epochs({"loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 4}}}}})
        4
    """
    return int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def digest(file: IO[bytes], size: int) -> str:
    """Return the SHA-256 of a file's first bytes, in hexadecimal; the file's position is then behind them."""
    file.seek(0)
    found = hashlib.sha256()
    while size > 0 and (part := file.read(min(size, 2**20))):
        size -= len(part)
        found.update(part)
    return found.hexdigest()


def duplicate(source: Path, target: Path) -> None:
    """Hard-link (or copy) a file to a second name atomically, replacing what is there."""
    partial = target.with_name(f".{target.name}.second{PARTIAL}")
    with explain_write_errors(target):
        try:
            partial.unlink(missing_ok=True)
            try:
                os.link(source, partial)
            except OSError:
                shutil.copyfile(source, partial)
            os.replace(partial, target)
            sync_folder(target.parent)
        finally:
            with suppress(OSError):
                partial.unlink()
