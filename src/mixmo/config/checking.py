"""Plain values against the annotations of dataclasses: one check of every setting, whatever its source."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mixmo.errors import InputError, one_of

NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text", type(None): "null"}


@functools.cache
def hints(section: type) -> Mapping[str, Any]:
    """Return the annotation of every setting of a dataclass of sections, by its dotted name.

    Example:
        >>> from mixmo.config.settings import Settings
        >>> hints(Settings)["data.batch_size"]
        <class 'int'>
    """
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        if dataclasses.is_dataclass(hint):
            found |= {f"{name}.{key}": own for key, own in hints(hint).items()}  # type: ignore[arg-type]
        else:
            found[name] = hint
    return found


def flattened(recipe: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a recipe as dotted names and values; what stands under a known name is a value.

    Args:
        recipe: Sections of settings, as YAML has them.
        known: From :func:`hints`.
        prefix: The section's name with a dot behind it.

    Raises:
        InputError: for a name that is not known, with what is near it.

    Example:
        >>> list(flattened({"data": {"flip": True}}, {"data.flip": bool}))
        [('data.flip', True)]
    """
    for key, value in recipe.items():
        name = f"{prefix}{key}"
        if name in known:
            yield name, value
        elif inside := [each for each in known if each.startswith(f"{name}.")]:
            if not isinstance(value, Mapping | None):
                raise InputError(f"{name} is {_shown(value)}; it is a section of settings, such as {inside[0]}.")
            yield from flattened(value or {}, known, f"{name}.")
        else:
            one_of(name, known, "setting")


def checked(value: Any, hint: Any, name: str) -> Any:
    """Return a value as its annotation has it: 1 for a float becomes 1.0, and so does "1e-3", as YAML 1.1 reads it.

    Args:
        value: A plain value.
        hint: ``bool``, ``int``, ``float``, ``str``, ``None``, ``Any`` (a scalar, or lists or mappings of scalars), or a
            ``Literal``, ``list``, ``dict`` or union of such.
        name: What it is, for the error.

    Raises:
        InputError: naming both, with the near match of a word.

    Example:
        >>> checked("cosin", Literal["cosine", "multistep"], "schedule.kind")
        Traceback (most recent call last):
        mixmo.errors.InputError: unknown schedule.kind 'cosin'; did you mean 'cosine'?
        >>> checked("1e-3", float, "optimizer.lr")
        0.001
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return _plain(value, name)
    if origin is Literal:
        if value in arguments and type(value) in map(type, arguments):
            return value
        one_of(value if isinstance(value, str) else str(value), map(str, arguments), name)
    elif origin in (Union, types.UnionType):
        return _any_of(value, arguments, name)
    elif origin is list and isinstance(value, list | tuple):
        return [checked(each, arguments[0], f"{name}[{index}]") for index, each in enumerate(value)]
    elif origin is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: checked(each, arguments[1], f"{name}.{key}") for key, each in value.items()}
    elif hint is float and type(value) in (int, float, str):
        return _number(value, name)
    elif type(value) is hint or (hint is None and value is None):
        return value
    raise InputError(f"{name} is {_shown(value)}; it is {described(hint)}.")


def _any_of(value: Any, arguments: tuple[Any, ...], name: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    if exact := [hint for hint in arguments if type(value) is hint]:
        return checked(value, exact[0], name)
    fitting = [hint for hint in arguments if _fits(value, hint)]
    if len(fitting) == 1:  # its own error says more than that nothing fits
        return checked(value, fitting[0], name)
    for hint in fitting:
        try:
            return checked(value, hint, name)
        except InputError:
            continue
    raise InputError(f"{name} is {_shown(value)}; it is {' or '.join(described(hint) for hint in arguments)}.")


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of the right kind, though its parts may be wrong."""
    origin = get_origin(hint) or hint
    kinds: dict[Any, tuple[type, ...]] = {
        Literal: (str,), list: (list, tuple), dict: (dict,), float: (int, float, str), Any: (object,),
    }  # fmt: skip
    return isinstance(value, kinds.get(origin, ())) and not (origin is float and isinstance(value, bool))


def _number(value: float | str, name: str) -> float:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise InputError(f"{name} is {_shown(value)}; it is a number.") from None
    if not math.isfinite(number):
        raise InputError(f"{name} is {number}; it is a finite number.")
    return number


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each, f"{name}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(each, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, float):
        return _number(value, name)
    if value is None or isinstance(value, bool | int | str):
        return value
    raise InputError(f"{name} is {_shown(value)}; it is a scalar, or a list or mapping of scalars.")


def described(hint: Any) -> str:
    """Return an annotation in words.

    Example:
        >>> described(list[float]), described(Literal[1, 3])
        ('a list, each a number', '1 or 3')
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(map(described, arguments))
    if origin is list:
        return f"a list, each {described(arguments[0])}"
    if origin is dict:
        return f"a mapping of names, each to {described(arguments[1])}"
    return NAMES.get(hint, "a plain value")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
