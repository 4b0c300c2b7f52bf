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
COMMENT_SIZE = len(MARK) + 64
"""Bytes of the mark and the hexadecimal digest, stored as the comment of the zip file that torch writes."""

KEYS = ("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "optimizer_states", "header",
        "unfinished", "MixedPrecision")  # fmt: skip
"""The keys that are read; ``MixedPrecision`` is Lightning's name for the float16 loss scale."""

STATE = "Checkpoints"
"""The only callback whose state is read, :class:`mixmo.training.checkpointing.Checkpoints`."""

LAST, PREVIOUS, BEST = (f"{name}.ckpt" for name in ("last", "previous", "best"))


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically and append its SHA-256 digest."""
    with replace_file(path) as file:
        writer = _Writer(file)
        try:
            torch.save(dict(content), writer)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise writer.error or error from error
        file.seek(-2, os.SEEK_END)
        file.write(COMMENT_SIZE.to_bytes(2, "little"))  # a zip file ends with its comment's length and the comment
        file.write(MARK + digest(file, file.tell()).encode())


class _Writer:
    """A file that records the error of a failed write, which torch does not report."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write bytes, recording an OSError."""
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()


def load(path: Path) -> dict[str, Any]:
    """Verify a checkpoint's digest and return its content, on the CPU.

    Only tensors and plain values are read, and only under the keys that training resumes from: a checkpoint cannot name
    a path to delete or a module to import.
    """
    if not path.is_file():
        raise MissingError(f"there is no checkpoint at {path}.")
    size = path.stat().st_size - COMMENT_SIZE
    with path.open("rb") as file:
        file.seek(max(size, 0))
        if file.read() != MARK + digest(file, size).encode():
            raise InputError(f"{path} is damaged: its content does not match its digest.")
    content = read_checkpoint(path)
    result = {key: content[key] for key in KEYS if key in content}
    if not isinstance(result.get("epoch"), int) or not isinstance(result.get("state_dict"), dict):
        raise InputError(f"{path} is not a mixmo checkpoint: it has no epoch or no weights.")
    result.setdefault("pytorch-lightning_version", version("lightning"))
    callbacks = content.get("callbacks")
    state = callbacks.get(STATE) if isinstance(callbacks, dict) else None
    result["callbacks"] = {}
    if isinstance(state, dict):
        result["callbacks"][STATE] = {key: value for key, value in state.items() if isinstance(value, int | float)}
    return result


def describe(path: Path) -> dict[str, Any]:
    """Return a checkpoint's ``header``, finished ``epochs``, and how many of them are ``stale``: after the best one.

    This is cached until the file changes.
    """
    if not path.is_file():
        raise MissingError(f"there is no checkpoint at {path}.")
    return _describe_file(path, *stamp_file(path))


def stamp_file(path: Path) -> tuple[int, int, int]:
    """Return what changes with a checkpoint's file: inode, size and time."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=256)
def _describe_file(path: Path, inode: int, size: int, time: int) -> dict[str, Any]:
    content = load(path)
    epochs, best = finished_epochs(content), int(content["callbacks"].get(STATE, {}).get("best_epoch", -1))
    return {"header": content.get("header"), "epochs": epochs, "stale": epochs - 1 - best if best >= 0 else 0}


def finished_epochs(content: Mapping[str, Any]) -> int:
    """Return the number of finished epochs; a partial epoch does not count.

    Example:
        >>> finished_epochs({"loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 4}}}}})
        4
    """
    return int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def digest(file: IO[bytes], size: int) -> str:
    """Return the hexadecimal SHA-256 of a file's first ``size`` bytes, and leave its position after them."""
    file.seek(0)
    sha256 = hashlib.sha256()
    while size > 0 and (part := file.read(min(size, 2**20))):
        size -= len(part)
        sha256.update(part)
    return sha256.hexdigest()


def duplicate(source: Path, target: Path) -> None:
    """Hard-link, or else copy, a file to ``target``, replacing it atomically."""
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
