"""Bad input in one clear sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def one_of(value: str, known: Iterable[str], what: str) -> str:
    """Return ``value`` if it is known; otherwise say what is near it.

    Args:
        value: What was asked for.
        known: The names that exist.
        what: The kind of thing, for the sentence.

    Raises:
        ValueError: if ``value`` is not among ``known``.

    Example:
        >>> one_of("lineal", ["linear", "cut"], "mixer kind")
        Traceback (most recent call last):
        ValueError: unknown mixer kind 'lineal'; did you mean 'linear'?
    """
    names = sorted(known)
    if value in names:
        return value
    near = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    else:
        hint = (
            f"there {'is' if len(names) == 1 else 'are'} {', '.join(names)}."
            if len(names) < 30
            else "none has a similar name."
        )
    raise ValueError(f"unknown {what} {value!r}; {hint}")


def sentence(error: BaseException) -> str:
    r"""Return what an error says; one raised in a worker process comes with a traceback, which is left out.

    Example:
        >>> sentence(ValueError("Caught in worker 0.\nOriginal Traceback …\nValueError: image a.png is damaged"))
        'image a.png is damaged'
    """
    text = str(error)
    return text.strip().splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text
