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
"""The name of the description in an exported folder, and of its entry in an exported file."""

DIGEST = "sha256"
"""The key of the digest in a description."""

_PATTERN = re.compile(rb'\\?"sha256\\?": \\?"([0-9a-f]{64})\\?"')
_ZEROS = b"0" * 64


def placeholder() -> str:
    """Return a unique placeholder for a file's digest, to be replaced by :func:`write_digest`."""
    return secrets.token_hex(32)


def write_digest(file: Path, token: str) -> None:
    """Replace a file's placeholder ``token`` with the SHA-256 of its content, computed with zeros in its place.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file, token = Path(folder) / "a.json", placeholder()
        ...     _ = file.write_text(json.dumps({"answer": 42, DIGEST: token}))
        ...     write_digest(file, token)
        ...     has_digest(file)
        True
    """
    content, pattern = file.read_bytes(), token.encode()
    if content.count(pattern) != 1:
        raise InputError(f"no digest can be written to {file}: its description was changed by the format's writer.")
    digest = hashlib.sha256(content.replace(pattern, _ZEROS)).hexdigest()
    with file.open("r+b") as opened:
        opened.seek(content.index(pattern))
        opened.write(digest.encode())


def has_digest(file: Path) -> bool:
    """Return whether a file has a digest; raise if its content does not match it."""
    content = file.read_bytes()
    digests = set(_PATTERN.findall(content))
    if any(hashlib.sha256(content.replace(each, _ZEROS)).hexdigest().encode() == each for each in digests):
        return True
    if digests:
        raise InputError(f"{file} is damaged: its content does not match its digest.")
    return False


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each named file in a folder."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def check_files(folder: Path, names: Iterable[str]) -> bool:
    """Return whether a folder's description has a digest; raise if it or one of the named files does not match."""
    if not has_digest(folder / SPEC):
        return False
    expected = json.loads((folder / SPEC).read_bytes()).get("files", {})
    actual = file_digests(folder, names)
    if wrong := [name for name, digest in actual.items() if expected.get(name) != digest]:
        raise InputError(f"{folder / wrong[0]} is damaged: it does not match its digest in {SPEC}.")
    return True


def is_whole_export(path: Path) -> bool:
    """Return whether a file or folder was exported by mixmo and has not changed since."""
    try:
        if not path.is_dir():
            return has_digest(path)
        names = {each.name for each in path.iterdir()} - {SPEC}
        return (path / SPEC).is_file() and check_files(path, names)
    except (InputError, OSError, ValueError):
        return False
