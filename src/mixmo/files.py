"""Safe reading and atomic writing of files."""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from mixmo.errors import InputError, MissingError, reason

PARTIAL = ".partial"
"""Ends the names of files that are being written; one that a killed process left may be deleted."""

MARKDOWN_MARK = "<!-- written by mixmo -->"
MARKS = (MARKDOWN_MARK.encode(), b'<meta name="generator" content="mixmo">', b"Software\0mixmo")
JSON_START = b'{\n "about": {'
"""By which pages, tables, pictures (PNG) and measurements (JSON) of ours are known."""


def read_checkpoint(path: str | Path, kinds: Sequence[Any] = ()) -> dict[str, Any]:
    """Return what a torch checkpoint holds, on the CPU, unpickling tensors and plain values only.

    Further ``kinds`` of classes and functions may be in it, as for ``torch.serialization.safe_globals``; what they make
    is data, too.

    Example:
        >>> read_checkpoint("nowhere.ckpt")
        Traceback (most recent call last):
        mixmo.errors.MissingError: there is no checkpoint at nowhere.ckpt.
    """
    import torch  # which commands that read settings only do without

    if not Path(path).is_file():
        raise MissingError(f"there is no checkpoint at {path}.")
    try:
        with torch.serialization.safe_globals(list(kinds)) if kinds else nullcontext():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch's unpickler raises of other files depends on their bytes
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} holds an object {found[1]}, but only tensors and plain values are read, since objects can run "
                "code; save the weights alone where they come from: torch.save(net.state_dict(), FILE)."
            ) from error
        raise InputError(f"{path} is damaged, or no file that torch.save wrote: {reason(error)}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a checkpoint.")
    return content


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse anything but a regular file: a pipe may never send anything, and a device never end.

    Raises:
        FileNotFoundError: if there is nothing.
        InputError: naming what it is, for a sentence that names the path.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        raise InputError(f"it is {next((text for test, text in kinds if test(mode)), 'a device')}, not a regular file")


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; errors say ``what`` kind of file it is."""
    if not path.is_file():
        raise MissingError(f"there is no {what} {path}.")
    try:
        content = yaml.load(path.read_text("utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{what} {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{what} {path} holds {type(content).__name__}; it has to be a mapping of settings.")
    return content


def yaml_text(content: Mapping[str, Any]) -> str:
    """Return plain values as YAML that is read back as they are, in their order, letters of all scripts as such.

    Example:
        >>> print(yaml_text({"name": "Bär", "1": ["yes", 1.0]}), end="")
        name: Bär
        '1':
        - 'yes'
        - 1.0
    """
    return yaml.dump(content, Dumper=_ExactTexts, sort_keys=False, allow_unicode=True)


class _ExactTexts(yaml.SafeDumper):
    """Escapes U+0085, which PyYAML otherwise writes as the line break that it also is, and reads as a space."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if "\x85" in data else None)


_ExactTexts.add_representer(str, _ExactTexts.represent_str)


class _UniqueKeys(yaml.SafeLoader):
    """Plain values only, and no key twice: the later one would win without a word."""

    def construct_document(self, node: yaml.Node) -> Any:
        self.deep_construct = True  # an alias of itself is an error, not a value without an end
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.YAMLError(f"key {key!r} appears twice")
        return super().construct_mapping(node, deep)


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8 as :func:`write_bytes` does, and return its path."""
    return write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all (:func:`replace_file`); return ``path``."""
    with replace_file(path) as file:
        file.write(content)
    return path


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a neighbour of a file for writing; it takes the file's place once it is whole and on the disk.

    Until then what was there before stays, and of a block that fails nothing is left.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replace_file(Path(folder) / "a.txt") as file:
        ...         _ = file.write(b"whole")
        ...     [each.name for each in Path(folder).iterdir()]
        ['a.txt']
    """
    with explain_write_errors(path):
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        try:
            with partial.open("x+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Say in one sentence, an ``InputError``, that what a block writes cannot be written."""
    try:
        yield
    except InputError:  # a missing file is both
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or reason(error)}.") from error


def make_folder(path: Path) -> Path:
    """Make a folder and its parents where they are missing, and return it."""
    with explain_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def check_place(path: Path, ours: bool, overwrite: bool = False, folder: bool = False) -> None:
    """Refuse to replace what mixmo did not write; nothing need be there.

    Args:
        path: Where a file, or a folder, is to be written.
        ours: Whether what is there is recognisably an earlier output of the same kind.
        overwrite: Whether a file is replaced anyway; another program's folder never is.
        folder: Whether a folder is to be written.
    """
    if not os.path.lexists(path):
        return
    link = path.is_symlink()
    if path.is_dir() and not link and not folder:
        raise InputError(f"{path} is a folder; choose a file to write with --out.")
    if (ours and not link) or (overwrite and not folder):
        return
    what = "a link" if link else "not recognisably mixmo's"
    hint = "" if folder else ", or replace it with --overwrite"
    raise InputError(f"{path} exists already and is {what}; choose another place with --out{hint}.")


def is_marked(path: Path) -> bool:
    """Return whether a page, picture or table is one that mixmo writes, by what its first bytes say."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    first = start.partition(b"\n")[0]
    table = first.startswith(b"group,run,") and first.endswith(b",corruptions")
    return table or start.startswith(JSON_START) or any(mark in start for mark in MARKS)


@contextmanager
def assemble(path: Path) -> Iterator[Path]:
    """Give a hidden place to make a file or a folder in, which takes the place of another once the block ends.

    Until then what was there stays, and of a block that fails nothing is left. What a killed process left is removed by
    the next call for the same path, an hour later. The folder that it is in exists.
    """
    with explain_write_errors(path):
        for left in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}/"):
            if time.time() - left.stat().st_mtime > 3600:
                shutil.rmtree(left, ignore_errors=True)
        hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        hidden.mkdir()
        made, earlier = hidden / path.name, hidden / "earlier"
        try:
            yield made
            for file in [made, *made.rglob("*")]:
                if file.is_dir():
                    continue
                with file.open("rb") as content:
                    os.fsync(content.fileno())
            if path.is_dir() and not path.is_symlink():
                path.rename(earlier)
            try:
                made.rename(path)
            except OSError:
                if earlier.exists():
                    earlier.rename(path)
                raise
            sync_folder(path.parent)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
