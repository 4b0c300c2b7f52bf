"""Words of a command line, read against what can be set: ``--data.batch_size 16``, ``--data.flip``.

tyro, pydantic-settings and jsonargparse were tried on the settings (docs/architecture.md has what came out): each
refuses what a recipe's YAML says for a value, or stops at the first error. So words are read here, into the form that
recipes have, and checked once together with the recipe; jsonargparse writes the help and the completion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from mixmo.errors import InputError
from mixmo.validation import join_sentences, unknown_setting


def read_words(words: Sequence[str], known: Mapping[str, Any], command: str) -> tuple[list[str], dict[str, Any]]:
    """Return words that stand alone, and the values of options by their names, as YAML reads them.

    ``--name value`` and ``--name=value`` are the same; the value of one that is true or false may be left out. A later
    word overrides an earlier one. What stands behind ``--`` stands alone. No name is abbreviated.

    Args:
        words: The command line behind the command.
        known: The annotation of each option by its name.
        command: The command, for errors.

    Raises:
        InputError: naming every unknown option, with what is near it; or one without its value.

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
            alone.append(word)
            continue
        name, equals, text = word[2:].partition("=")
        owner = owner_of(name, known)
        if owner is None:
            unknown.append(unknown_setting(f"--{name}", [f"--{each}" for each in known], "option", f"`mixmo {command} --help`"))
            if not equals and rest and not rest[0].startswith("--"):
                rest.pop(0)
            continue
        hint = known[owner]
        if is_list(hint) and not equals and owner == name:
            values[name] = _take_all(rest, hint, name)
            continue
        if not equals:
            text = _take(rest, hint, name)
        value = read_value(text, hint if owner == name else Any)
        values.pop(name, None)  # so that values stand in the order of their words
        values[name] = value
    if unknown:
        raise InputError(join_sentences(unknown))
    return alone, values


def owner_of(name: str, known: Mapping[str, Any]) -> str | None:
    """Return the option that a name belongs to: itself, or the one that holds another library's options."""
    if name in known:
        return name
    return next((each for each in known if each.endswith(".options") and name.startswith(f"{each}.")), None)


def read_value(text: str, hint: Any) -> Any:
    """Return what a word says: as YAML reads it, but a text where one is wanted.

    Example:
        >>> read_value("yes", bool), read_value("2024", str), read_value("null", str | None)
        (True, '2024', None)
    """
    if hint is str:
        return text
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return text
    kinds = _kinds(hint)
    other = value is None or isinstance(value, Mapping | list) or (bool in kinds and isinstance(value, bool))
    wants_text = any(kind is str or isinstance(kind, str) for kind in kinds)
    return text if wants_text and not other else value


def _take(rest: list[str], hint: Any, name: str) -> str:
    """Take the value of an option from the words behind it."""
    kinds = _kinds(hint)
    if bool in kinds and str not in kinds:  # a flag takes no word but yes or no
        return rest.pop(0) if rest and isinstance(read_value(rest[0], bool), bool) else "true"
    if bool in kinds and (not rest or rest[0].startswith("--")):
        return "true"
    if not rest or rest[0].startswith("--"):
        raise InputError(f"--{name} needs a value: --{name}=….")
    return rest.pop(0)


def _take_all(rest: list[str], hint: Any, name: str) -> Any:
    """Take the values of an option that is a list: several words, or one in YAML's form."""
    taken = [_take(rest, hint, name)]
    while rest and not rest[0].startswith("--"):
        taken.append(rest.pop(0))
    if len(taken) == 1 and isinstance(value := read_value(taken[0], list[str]), list | None):
        return value
    (kind,) = get_args(next(each for each in _kinds(hint) if get_origin(each) is list))
    return [read_value(each, kind) for each in taken]


def _kinds(hint: Any) -> list[Any]:
    """Return the types of a union, and the choices of a ``Literal`` in it."""
    if get_origin(hint) in (Union, UnionType, Literal):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    return [hint]


def is_list(hint: Any) -> bool:
    """Return whether an annotation is of a list, and of no text."""
    kinds = _kinds(hint)
    return any(get_origin(kind) is list for kind in kinds) and str not in kinds
