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
"""Tensors by name, and JSON-serialisable metadata."""


def cache_folder(name: str) -> Path:
    """Return a folder in ``$XDG_CACHE_HOME``, or ``~/.cache``, without creating it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mixmo" / name


def cache_tensors(file: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> bool:
    """Write a safetensors file with JSON metadata and the digest of both; return whether that succeeded."""
    text = json.dumps({**note, "sha256": _digest(note, tensors)})
    return _write(file, safetensors.torch.save(dict(tensors), {"note": text}))  # two entries would vary in order


def read_tensors(file: Path) -> Content | None:
    """Return what :func:`cache_tensors` wrote; ``None`` if the file is missing, or damaged (with a warning)."""

    def read_content() -> Content:
        with safetensors.safe_open(file, "pt") as content:
            return {name: content.get_tensor(name) for name in content.keys()}, json.loads(content.metadata()["note"])  # noqa: SIM118

    return _read(file, read_content)


def cache_json(file: Path, content: Mapping[str, Any]) -> bool:
    """Write a JSON file with a digest; return whether that succeeded."""
    return _write(file, json.dumps({**content, "sha256": _digest(content, {})}, indent=1).encode())


def read_json(file: Path) -> dict[str, Any] | None:
    """Return what :func:`cache_json` wrote; ``None`` if the file is missing, or damaged (with a warning)."""
    content = _read(file, lambda: ({}, json.loads(file.read_bytes())))
    return None if content is None else content[1]


def _read(file: Path, read_content: Callable[[], Content]) -> Content | None:
    """Return a file's tensors and metadata if they match their digest."""
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
    """Return the SHA-256 of JSON content and of the tensors' names, types, shapes and bytes."""
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            sha256.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _write(file: Path, content: bytes) -> bool:
    try:
        make_folder(file.parent)
        write_bytes(file, content)
    except InputError as error:  # caching is optional
        logger.warning("%s The result is not cached.", printable(str(error)))
        return False
    return True
