"""Digests of exported files and folders, which detect damage and foreign files."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from mixmo.errors import InputError

SPEC = "mixmo.json"
"""The name of the description in an exported folder, and in an exported file."""

DIGEST = "sha256"
"""The key of the digest in a description."""

_FOUND = re.compile(rb'\\?"sha256\\?": \\?"([0-9a-f]{64})\\?"')
_ZEROS = b"0" * 64


def placeholder() -> str:
    """Return a unique placeholder for a file's digest, which :func:`write_digest` replaces."""
    return secrets.token_hex(32)


def write_digest(file: Path, placed: str) -> None:
    """Replace a file's placeholder with the SHA-256 of its content, in which zeros replace the placeholder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file, placed = Path(folder) / "a.json", placeholder()
        ...     _ = file.write_text(json.dumps({"answer": 42, DIGEST: placed}))
        ...     write_digest(file, placed)
        ...     has_digest(file)
        True
    """
    content, place = file.read_bytes(), placed.encode()
    if content.count(place) != 1:
        raise InputError(f"{file} cannot be written with its digest: its description is not in it unchanged.")
    digest = hashlib.sha256(content.replace(place, _ZEROS)).hexdigest()
    with file.open("r+b") as opened:
        opened.seek(content.index(place))
        opened.write(digest.encode())


def has_digest(file: Path) -> bool:
    """Return whether a file has a digest of :func:`write_digest`, and verify it."""
    content = file.read_bytes()
    found = set(_FOUND.findall(content))
    if any(hashlib.sha256(content.replace(each, _ZEROS)).hexdigest().encode() == each for each in found):
        return True
    if found:
        raise InputError(f"{file} is damaged: its content does not have the digest that was written with it.")
    return False


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of files in a folder, for its description."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def check_files(folder: Path, names: Iterable[str]) -> bool:
    """Return whether a folder's description has digests, and verify its own and those of these files."""
    if not has_digest(folder / SPEC):
        return False
    known = json.loads((folder / SPEC).read_bytes()).get("files", {})
    found = file_digests(folder, names)
    if wrong := [name for name, digest in found.items() if known.get(name) != digest]:
        raise InputError(f"{folder / wrong[0]} is damaged: it does not have the digest that {SPEC} holds.")
    return True


def is_whole_export(path: Path) -> bool:
    """Return whether mixmo wrote a file or a folder, and nothing in it has changed since."""
    try:
        if not path.is_dir():
            return has_digest(path)
        names = {each.name for each in path.iterdir()} - {SPEC}
        return (path / SPEC).is_file() and check_files(path, names)
    except (InputError, OSError, ValueError):
        return False
