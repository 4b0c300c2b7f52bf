"""Parsing of command-line words against the known settings: ``--data.batch_size 16``, ``--data.flip``.

They are read into the form that recipes have, and checked once, together with the recipe; docs/architecture.md says
why no library does that.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from mixmo.errors import InputError, explain_unknown
from mixmo.validation import join_sentences


def read_words(words: Sequence[str], known: Mapping[str, Any], command: str) -> tuple[list[str], dict[str, Any]]:
    """Return positional arguments, and the values of options by their names, as YAML reads them.

    ``--name value`` and ``--name=value`` are the same; the value of one that is true or false may be left out. A later
    word overrides an earlier one. What follows ``--`` is positional. Names are whole; all unknown ones are named.

    Example:
        >>> read_words(["run", "--seed", "1", "--flip", "--means=[0.5]"],
        ...            {"seed": int, "flip": bool, "means": list[float]}, "fit")
        (['run'], {'seed': 1, 'flip': True, 'means': [0.5]})
    """
    alone: list[str] = []
    values: dict[str, Any] = {}
    unknown: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            alone += rest
            break
        if not word.startswith("--"):
            if word.startswith("-") and len(word) > 1:
                raise InputError(f"{word!r} is not understood; options are --name=value, and -- comes before files.")
            alone.append(word)
            continue
        name, equals, text = word[2:].partition("=")
        owner = owner_of(name, known)
        if owner is None:
            near, listed = [f"--{each}" for each in known], f"`mixmo {command} --help`"
            unknown.append(explain_unknown(f"--{name}", near, "option", listed))
            if not equals and rest and not rest[0].startswith("--"):
                rest.pop(0)
            continue
        hint = known[owner]
        values.pop(name, None)  # so that values are in the order of their words
        if is_list(hint) and owner == name:
            values[name] = _read_list([text] if equals else _take_all(rest, name), hint)
        else:
            values[name] = read_value(text if equals else _take(rest, hint, name), hint if owner == name else Any)
    if unknown:
        raise InputError(join_sentences(unknown))
    return alone, values


def owner_of(name: str, known: Mapping[str, Any]) -> str | None:
    """Return the option that a name belongs to: itself, or the one that holds another library's options."""
    if name in known:
        return name
    return next((each for each in known if each.endswith(".options") and name.startswith(f"{each}.")), None)


def read_value(text: str, hint: Any) -> Any:
    """Return the value of a word: as YAML reads it, but a string where one is expected.

    Example:
        >>> read_value("yes", bool), read_value("2024", str), read_value("null", str | None)
        (True, '2024', None)
    """
    if hint is str or not text:
        return text
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return text
    kinds = _kinds(hint)
    origins = {get_origin(kind) or kind for kind in kinds}
    other = value is None or any(isinstance(value, kind) for kind in (dict, list, bool) if kind in origins)
    wants_text = any(kind is str or isinstance(kind, str) for kind in kinds)
    return text if wants_text and not other else value


def _take(rest: list[str], hint: Any, name: str) -> str:
    """Take the value of an option from the words behind it."""
    kinds = _kinds(hint)
    if bool in kinds and str not in kinds:  # a flag takes only yes, no or null
        own = read_value(rest[0], bool) if rest else ""
        return rest.pop(0) if isinstance(own, bool) or (own is None and type(None) in kinds) else "true"
    if bool in kinds and (not rest or rest[0].startswith("--")):
        return "true"
    (word,) = _take_all(rest, name, most=1)
    return word


def _take_all(rest: list[str], name: str, most: int | None = None) -> list[str]:
    """Take all words up to the next option, or the first of them."""
    taken = list(itertools.takewhile(lambda word: not word.startswith("--"), rest[:most]))
    if not taken:
        raise InputError(f"--{name} needs a value: --{name}=….")
    del rest[: len(taken)]
    return taken


def _read_list(words: Sequence[str], hint: Any) -> Any:
    """Return a list from its words: each word a value, or a single one a list in YAML."""
    if len(words) == 1 and isinstance(value := read_value(words[0], list[str]), list | None):
        return value
    (kind,) = get_args(next(each for each in _kinds(hint) if get_origin(each) is list))
    return [read_value(each, kind) for each in words]


def _kinds(hint: Any) -> list[Any]:
    """Return the types of a union, and the choices of a ``Literal`` in it."""
    if get_origin(hint) in (Union, UnionType, Literal):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    return [hint]


def is_list(hint: Any) -> bool:
    """Return whether an annotation allows a list, but no string or number."""
    kinds = _kinds(hint)
    return any(get_origin(kind) is list for kind in kinds) and not {str, int} & set(kinds)
