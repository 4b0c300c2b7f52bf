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
"""Suffix of files that are being written; leftovers of killed processes may be deleted."""

MARKDOWN_MARK = "<!-- written by mixmo -->"
MARKS = (MARKDOWN_MARK.encode(), b'<meta name="generator" content="mixmo">', b"Software\0mixmo")
JSON_START = b'{\n "about": {'
"""Markers that identify files written by mixmo."""


def read_checkpoint(path: str | Path, kinds: Sequence[Any] = ()) -> dict[str, Any]:
    """Load a torch checkpoint on the CPU, unpickling tensors and plain values only.

    ``kinds`` are further classes and functions to allow, as in ``torch.serialization.safe_globals``.

    Example:
        >>> read_checkpoint("nowhere.ckpt")
        Traceback (most recent call last):
        mixmo.errors.MissingError: there is no checkpoint at nowhere.ckpt.
    """
    import torch  # here, since commands that only read settings do without it

    if not Path(path).is_file():
        raise MissingError(f"there is no checkpoint at {path}.")
    try:
        with torch.serialization.safe_globals(list(kinds)) if kinds else nullcontext():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes may raise anything
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} holds an object {match[1]}, but only tensors and plain values are read, since objects can run "
                "code; save only the weights where it was written: torch.save(net.state_dict(), FILE)."
            ) from error
        raise InputError(f"{path} is damaged, or was not written by torch.save: {reason(error)}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a checkpoint.")
    return content


def describe_working_folder(path: Path) -> str:
    """Return where a relative path was looked up, for errors; empty for an absolute one."""
    return "" if path.is_absolute() else f" in the working directory, {Path.cwd()}"


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse anything but a regular file: reading a pipe or a device may never end.

    Raises:
        FileNotFoundError: if the path does not exist.
        InputError: saying what it is; the caller adds the path.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        raise InputError(f"it is {next((text for test, text in kinds if test(mode)), 'a device')}, not a regular file")


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; error messages call the file ``what``."""
    if not path.is_file():
        raise MissingError(f"there is no {what} {path}.")
    try:
        content = yaml.load(path.read_text("utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{what} {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{what} {path} holds a {type(content).__name__}; it must be a mapping of settings.")
    return content


def yaml_text(content: Mapping[str, Any]) -> str:
    """Return YAML that loads back to the same plain values, with keys in order and non-ASCII letters unescaped.

    Example:
        >>> print(yaml_text({"name": "Bär", "1": ["yes", 1.0]}), end="")
        name: Bär
        '1':
        - 'yes'
        - 1.0
    """
    return yaml.dump(content, Dumper=_ExactTexts, sort_keys=False, allow_unicode=True)


class _ExactTexts(yaml.SafeDumper):
    """Escapes U+0085, which PyYAML writes as a line break and reads back as a space."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if "\x85" in data else None)


_ExactTexts.add_representer(str, _ExactTexts.represent_str)


class _UniqueKeys(yaml.SafeLoader):
    """Loads plain values only and refuses duplicate keys, of which PyYAML would silently take the last."""

    def construct_document(self, node: yaml.Node) -> Any:
        self.deep_construct = True  # an alias of itself is then an error, not an endless value
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.YAMLError(f"key {key!r} appears twice")
        return super().construct_mapping(node, deep)


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 text file atomically; return ``path``."""
    return write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file atomically; return ``path``."""
    with replace_file(path) as file:
        file.write(content)
    return path


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """Write to a temporary sibling and rename it over ``path`` after fsync; on failure delete it.

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
    """Re-raise an OSError of the block as an InputError that names ``path``."""
    try:
        yield
    except InputError:  # a MissingError is an OSError too
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or reason(error)}.") from error


def make_folder(path: Path) -> Path:
    """Create a folder and its parents if missing; return ``path``."""
    with explain_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def check_output_path(path: Path, recognised: bool, overwrite: bool = False, folder: bool = False) -> None:
    """Refuse to overwrite what mixmo did not write; a missing path is fine.

    Args:
        path: The file or folder to be written.
        recognised: Whether the existing one is an earlier output of the same kind.
        overwrite: Replace any file; a folder that is not recognised is never replaced.
        folder: Whether a folder is to be written.
    """
    if not os.path.lexists(path):
        return
    link = path.is_symlink()
    if path.is_dir() and not link and not folder:
        raise InputError(f"{path} is a folder; choose a file to write (out).")
    if (recognised and not link) or (overwrite and not folder):
        return
    what = "a link" if link else "not a recognised mixmo output"
    hint = "" if folder else ", or set overwrite to replace it"
    raise InputError(f"{path} exists already and is {what}; choose another path (out){hint}.")


def is_marked(path: Path) -> bool:
    """Return whether the first bytes of a page, picture or table identify it as mixmo's."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    line = head.partition(b"\n")[0]
    table = line.startswith(b"group,run,") and line.endswith(b",corruptions")
    return table or head.startswith(JSON_START) or any(mark in head for mark in MARKS)


@contextmanager
def assemble(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which replaces ``path`` when the block succeeds.

    On failure ``path`` is untouched. Leftovers of killed processes are removed after an hour, by the next call.
    ``path.parent`` must exist.
    """
    with explain_write_errors(path):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}/"):
            with suppress(FileNotFoundError):  # another process has removed it
                if time.time() - leftover.stat().st_mtime > 3600:
                    shutil.rmtree(leftover, ignore_errors=True)
        hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        hidden.mkdir()
        new, old = hidden / path.name, hidden / "earlier"
        try:
            yield new
            for file in [new, *new.rglob("*")]:
                if not file.is_dir():
                    with file.open("rb") as content:
                        os.fsync(content.fileno())
            if path.is_dir() and not path.is_symlink():
                path.rename(old)
            try:
                new.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
            sync_folder(path.parent)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Fsync a folder's entries (POSIX only)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
