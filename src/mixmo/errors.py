"""Exceptions and error messages.

Invalid input raises :class:`InputError`; any other exception is a bug in mixmo.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any


class InputError(ValueError):
    """Invalid input; the message names the value, where it came from and what to do.

    torch passes on the error of a worker process as text, of which only the message is kept.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(extract_message(message))


class MissingError(InputError, FileNotFoundError):
    """A file, folder or dataset does not exist."""


class InUseError(InputError):
    """Another process is training in the folder."""


class TrainingError(InputError):
    """Training cannot continue; the message names the step and what to do."""


class StoppedError(Exception):
    """Training was stopped by a signal; the message says how to resume.

    ``code`` is the process's exit code: 128 plus the signal's number.
    """

    def __init__(self, message: str, code: int = 130) -> None:
        super().__init__(message)
        self.code = code


def one_of(value: str, known: Iterable[str], what: str) -> str:
    """Return ``value`` if it is known; otherwise raise an InputError that suggests similar names.

    Example:
        >>> one_of("lineal", ["linear", "cut"], "mixer kind")
        Traceback (most recent call last):
        mixmo.errors.InputError: unknown mixer kind 'lineal'; did you mean 'linear'?
    """
    names = sorted(known)
    if value not in names:
        raise InputError(explain_unknown(value, names, what))
    return value


def refuse_labels(name: str, options: Mapping[str, object]) -> None:
    """Refuse single-label options that are set (true) for the multi-label network ``name``."""
    for key, value in options.items():
        if value:
            raise InputError(f"{key} is only for single-label networks, but {name} is multi-label: leave it out.")


def explain_unknown(value: str, known: Iterable[str], what: str, listed: str = "") -> str:
    """Return an error message that suggests similar names, or all if few; ``listed`` is what prints them."""
    names = sorted(known)
    likeness = {name: _likeness(str(value), name) for name in names}
    near = [name for name in sorted(names, key=likeness.__getitem__, reverse=True) if likeness[name] >= 0.5][:3]
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    elif len(names) < 30 and len(", ".join(names)) < 400:
        hint = f"there {'is' if len(names) == 1 else 'are'} {', '.join(names)}."
    else:
        hint = f"none has a similar name{f'; {listed} lists them' if listed else ''}."
    return f"unknown {what} {value!r}; {hint}"


def _likeness(value: str, name: str) -> float:
    """Return the similarity of two names in [0, 1], compared whole and after the last dot (optimizer.base_lr)."""
    ends = [each.lstrip("-").rpartition(".")[2] for each in (value, name)]
    whole, end = (difflib.SequenceMatcher(None, *pair).ratio() for pair in ((value, name), ends))
    is_word = ends[0] != value and ends[0] in ends[1].split("_")
    return 0.9 + end / 10 if is_word else max(whole, end)


def import_extra(module: str, extra: str, why: str) -> Any:
    """Import an optional module; if it is missing, raise an InputError with ``why`` and the extra that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{why}; `pip install 'mixmo[{extra}]'` installs it.") from error


def reason(error: BaseException) -> str:
    r"""Return the first line of another library's error message, without object addresses and source paths.

    Example:
        >>> reason(OSError("cannot identify <_io.BytesIO object at 0x7f00>\nsee file.cpp:12"))
        'cannot identify'
        >>> reason(KeyError())
        'KeyError'
    """
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):  # the next line has the cause
        lines = lines[1:]
    text = re.sub(r"\s*<[\w. ]+ object at 0x[0-9a-f]+>", "", lines[0]) if lines else ""
    text = re.sub(r"\s*\(?(/[\w.+-]+)+\.(py|cpp|h|cc|cu):\d+\)?", "", text).strip().rstrip(".:")
    return text or type(error).__name__


@contextmanager
def explain_errors(text: str, *kinds: type[Exception]) -> Iterator[None]:
    """Re-raise the block's errors of these kinds, by default all, as an InputError: ``text`` and the reason.

    For other libraries and users' code, which may raise anything, and for damaged files. A signal and a lack of a GPU's
    memory are not explained by ``text``.

    Example:
        >>> with explain_errors("a.npy cannot be read"):
        ...     raise OSError("No data left in file")
        Traceback (most recent call last):
        mixmo.errors.InputError: a.npy cannot be read: No data left in file.
    """
    expected = kinds or (Exception,)
    try:
        yield
    except expected as error:
        if isinstance(error, StoppedError) or type(error).__name__ == "OutOfMemoryError":
            raise
        raise InputError(f"{text}: {reason(error)}.") from error


def extract_message(error: BaseException | str) -> str:
    r"""Return an error's message, without the traceback that a worker process prepends.

    Example:
        >>> extract_message(ValueError("Caught in worker 0.\nOriginal Traceback …\nValueError: image a.png is damaged"))
        'image a.png is damaged'
    """
    text = str(error)
    return text.strip().splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text
