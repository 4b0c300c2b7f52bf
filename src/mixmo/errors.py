"""Errors for invalid input: one clear sentence.

Errors that users cause are :class:`InputError`, raised where the cause is known; all others are defects of mixmo.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any


class InputError(ValueError):
    """Bad input: one sentence that names the value, where it came from and what to do."""


class MissingError(InputError, FileNotFoundError):
    """A file, folder or dataset that is not there."""


class InUseError(InputError):
    """Another process trains in the folder."""


class TrainingError(InputError):
    """Training cannot continue; the message says at which step, and what to do."""


class StoppedError(Exception):
    """Training was stopped from outside; the message says how to resume.

    The code is the process's exit code, 128 and the signal's number as shells report it.
    """

    def __init__(self, message: str, code: int = 130) -> None:
        super().__init__(message)
        self.code = code


def one_of(value: str, known: Iterable[str], what: str) -> str:
    """Return ``value`` if it is known; otherwise raise with similar names.

    Example:
        >>> one_of("lineal", ["linear", "cut"], "mixer kind")
        Traceback (most recent call last):
        mixmo.errors.InputError: unknown mixer kind 'lineal'; did you mean 'linear'?
    """
    names = sorted(known)
    if value not in names:
        raise InputError(explain_unknown(value, names, what))
    return value


def refuse_labels(name: str, asked: Mapping[str, object]) -> None:
    """Refuse an option for single-label networks that is asked for (true) of a multi-label network."""
    for key, value in asked.items():
        if value:
            raise InputError(f"{key} is for networks of one class for each image; {name} is multi-label: leave it out.")


def explain_unknown(value: str, known: Iterable[str], what: str, listed: str = "") -> str:
    """Return a sentence that names an unknown value and similar known ones, or where all are ``listed``."""
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
    """Return how similar two names are, from 0 to 1: as a whole, or after the last dot (optimizer.base_lr)."""
    ends = [each.lstrip("-").rpartition(".")[2] for each in (value, name)]
    whole, end = (difflib.SequenceMatcher(None, *pair).ratio() for pair in ((value, name), ends))
    is_word = ends[0] != value and ends[0] in ends[1].split("_")
    return 0.9 + end / 10 if is_word else max(whole, end)


def import_extra(module: str, extra: str, why: str) -> Any:
    """Return a module that is optional; where it is missing, say why it is needed and which extra installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{why}; `pip install 'mixmo[{extra}]'` installs it.") from error


def reason(error: BaseException) -> str:
    r"""Return another library's error message in one line, without object addresses or source paths.

    Example:
        >>> reason(OSError("cannot identify <_io.BytesIO object at 0x7f00>\nsee file.cpp:12"))
        'cannot identify'
        >>> reason(KeyError())
        'KeyError'
    """
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):  # the next line says which
        lines = lines[1:]
    text = re.sub(r"\s*<[\w. ]+ object at 0x[0-9a-f]+>", "", lines[0]) if lines else ""
    text = re.sub(r"\s*\(?(/[\w.+-]+)+\.(py|cpp|h|cc|cu):\d+\)?", "", text).strip().rstrip(".:")
    return text or type(error).__name__


def extract_message(error: BaseException) -> str:
    r"""Return an error's message; the traceback of one raised in a worker process is left out.

    Example:
        >>> extract_message(ValueError("Caught in worker 0.\nOriginal Traceback …\nValueError: image a.png is damaged"))
        'image a.png is damaged'
    """
    text = str(error)
    return text.strip().splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text
