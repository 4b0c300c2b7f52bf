"""Reading and writing files so that nothing is lost, half written or unsafe."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return what a torch checkpoint holds, on the CPU, unpickling tensors and plain values only.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, damaged, or holds more than tensors and plain values.

    Example:
        >>> read_checkpoint("nowhere.ckpt")
        Traceback (most recent call last):
        FileNotFoundError: there is no checkpoint at nowhere.ckpt.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint (truncated or damaged?): {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint.")
    return content


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8 as :func:`write_bytes` does, and return its path."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all, to a neighbour first, then renamed over ``path``; return ``path``.

    Args:
        path: The file; replaced if it exists.
        content: Its content.
    """
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
    return path
