"""Parsing of command lines such as ``--data.batch_size 16 --data.flip`` into the form of a recipe.

Values are checked later, together with the recipe's; docs/architecture.md explains why no library is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from mixmo.errors import InputError, explain_unknown
from mixmo.validation import join_messages


def parse_arguments(
    arguments: Sequence[str], known: Mapping[str, Any], command: str
) -> tuple[list[str], dict[str, Any]]:
    """Return positional arguments, and the values of options by name, parsed as YAML.

    ``--name value`` and ``--name=value`` are equivalent; flags need no value. Later options override earlier ones, and
    arguments after ``--`` are positional. Names cannot be abbreviated; all unknown names are reported together.

    Example:
        >>> parse_arguments(["run", "--seed", "1", "--flip", "--means=[0.5]"],
        ...                 {"seed": int, "flip": bool, "means": list[float]}, "fit")
        (['run'], {'seed': 1, 'flip': True, 'means': [0.5]})
    """
    positional: list[str] = []
    values: dict[str, Any] = {}
    unknown: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            positional += rest
            break
        if not argument.startswith("--"):
            if argument.startswith("-") and len(argument) > 1:
                raise InputError(f"unknown argument {argument!r}; options are --name=value, and -- precedes files.")
            positional.append(argument)
            continue
        name, equals, text = argument[2:].partition("=")
        owner = owner_of(name, known)
        if owner is None:
            options = [f"--{key}" for key in known]
            unknown.append(explain_unknown(f"--{name}", options, "option", f"`mixmo {command} --help`"))
            if not equals and rest and not rest[0].startswith("--"):
                rest.pop(0)
            continue
        hint = known[owner]
        values.pop(name, None)  # keeps the order of the arguments
        if is_list(hint) and owner == name:
            values[name] = _parse_list([text] if equals else _take_all(rest, name), hint)
        else:
            values[name] = parse_value(text if equals else _take(rest, hint, name), hint if owner == name else Any)
    if unknown:
        raise InputError(join_messages(unknown))
    return positional, values


def owner_of(name: str, known: Mapping[str, Any]) -> str | None:
    """Return the known option that has this name, or that contains it as an option of another library."""
    if name in known:
        return name
    return next((key for key in known if key.endswith(".options") and name.startswith(f"{key}.")), None)


def parse_value(text: str, hint: Any) -> Any:
    """Parse a value as YAML, but keep text if the annotation expects a string.

    Example:
        >>> parse_value("yes", bool), parse_value("2024", str), parse_value("null", str | None)
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
    """Remove the value of an option from the front of the remaining arguments; a flag without one is true."""
    kinds = _kinds(hint)
    if bool in kinds and str not in kinds:  # only a boolean or null is its value
        value = parse_value(rest[0], bool) if rest else ""
        return rest.pop(0) if isinstance(value, bool) or (value is None and type(None) in kinds) else "true"
    if bool in kinds and (not rest or rest[0].startswith("--")):
        return "true"
    (text,) = _take_all(rest, name, most=1)
    return text


def _take_all(rest: list[str], name: str, most: int | None = None) -> list[str]:
    """Remove the arguments up to the next option, at most ``most``."""
    texts = list(itertools.takewhile(lambda text: not text.startswith("--"), rest[:most]))
    if not texts:
        raise InputError(f"--{name} needs a value: --{name}=….")
    del rest[: len(texts)]
    return texts


def _parse_list(texts: Sequence[str], hint: Any) -> Any:
    """Parse a list: one argument per value, or a single YAML list."""
    if len(texts) == 1 and isinstance(value := parse_value(texts[0], list[str]), list | None):
        return value
    (kind,) = get_args(next(kind for kind in _kinds(hint) if get_origin(kind) is list))
    return [parse_value(text, kind) for text in texts]


def _kinds(hint: Any) -> list[Any]:
    """Return the types of a union, and the choices of its ``Literal``."""
    if get_origin(hint) in (Union, UnionType, Literal):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    return [hint]


def is_list(hint: Any) -> bool:
    """Return whether an annotation allows a list, but no string or number."""
    kinds = _kinds(hint)
    return any(get_origin(kind) is list for kind in kinds) and not {str, int} & set(kinds)
