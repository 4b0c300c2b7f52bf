"""On-disk cache of results, with checksums."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mixmo.errors import InputError
from mixmo.escaping import printable
from mixmo.files import make_folder, write_bytes

logger = logging.getLogger("mixmo")

Content = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and a note."""


def cache_folder(name: str) -> Path:
    """Return a folder of the user's cache, in ``~/.cache`` or where ``XDG_CACHE_HOME`` says; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mixmo" / name


def keep_tensors(file: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> bool:
    """Write a safetensors file with a note for JSON, and the digest of both; return whether that succeeded."""
    text = json.dumps({**note, "sha256": _digest(note, tensors)})
    return _write(file, safetensors.torch.save(dict(tensors), {"note": text}))  # the order of two would vary


def read_tensors(file: Path) -> Content | None:
    """Return what :func:`keep_tensors` wrote; ``None`` if the file is missing, or damaged (with a warning)."""

    def read_content() -> Content:
        with safetensors.safe_open(file, "pt") as content:
            return {name: content.get_tensor(name) for name in content.keys()}, json.loads(content.metadata()["note"])  # noqa: SIM118

    return _read(file, read_content)


def keep_json(file: Path, content: Mapping[str, Any]) -> bool:
    """Write what JSON can hold with its digest; return whether that succeeded."""
    return _write(file, json.dumps({**content, "sha256": _digest(content, {})}, indent=1).encode())


def read_json(file: Path) -> dict[str, Any] | None:
    """Return what :func:`keep_json` wrote; ``None`` if the file is missing, or damaged (with a warning)."""
    found = _read(file, lambda: ({}, json.loads(file.read_bytes())))
    return None if found is None else found[1]


def _read(file: Path, read_content: Callable[[], Content]) -> Content | None:
    """Return the tensors and the note in a file if their digest is right."""
    if not file.is_file():
        return None
    try:
        tensors, note = read_content()
        if note.pop("sha256") == _digest(note, tensors):
            return tensors, note
    except Exception as error:  # the reader may raise anything for damaged bytes
        logger.debug("%s", error)
    logger.warning("%s is damaged or of an earlier version; it is computed again.", printable(str(file)))
    return None


def _digest(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of what JSON can hold, and of tensors' names, types, shapes and bytes."""
    found = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _write(file: Path, content: bytes) -> bool:
    try:
        make_folder(file.parent)
        write_bytes(file, content)
    except InputError as error:  # the cache only saves time: the result itself is not lost
        logger.warning("%s The result is not cached.", printable(str(error)))
        return False
    return True
