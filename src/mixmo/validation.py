"""Classes of settings: pydantic dataclasses with clear error messages.

A class of settings is the single definition of a setting's type, range, default and meaning, and of whether it changes
results (:data:`Neutral`). Help, keywords, files and checks are derived from it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
import operator
import os
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo
from typing_extensions import dataclass_transform

from mixmo.errors import InputError, explain_unknown

T = TypeVar("T")

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ChangesNoResult:
    """Marks a setting that does not change results, such as the number of processes that decode images."""


class FromElsewhere:
    """Marks a field derived from another setting; recipes, options and keywords omit it."""


def _to_number(value: Any) -> Any:
    if isinstance(value, bool | np.bool_ | bytes):
        raise ValueError("it must be a number")
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value  # pydantic refuses it


def _to_integer(value: Any) -> Any:
    """Convert another library's integer to a Python int; refuse floats, even integral ones."""
    if isinstance(value, bool | float):
        raise ValueError("it must be an integer")
    try:
        return operator.index(value) if hasattr(value, "__index__") else value
    except TypeError as error:  # arrays and tensors of several values have the method as well
        raise ValueError("it must be an integer") from error


def _to_boolean(value: Any) -> Any:
    return bool(value) if isinstance(value, np.bool_) else value


def _to_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def to_list(value: Any) -> Any:
    """Convert a tuple or an array to a list."""
    return list(value) if isinstance(value, tuple | np.ndarray) else value


def _to_plain(value: Any, depth: int = 0) -> Any:
    """Convert a value to the plain types that YAML can write; refuse any other."""
    if depth > MAX_DEPTH:
        raise ValueError("it must not be nested so deeply")
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, list | tuple):
        return [_to_plain(each, depth + 1) for each in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("it must have strings as keys")
        return {str.__str__(key): _to_plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it must hold finite numbers")
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):  # subclasses become the base type
            return kind.__str__(value) if kind is str else kind(value)
    raise ValueError("it must hold plain values: scalars, lists and mappings")


MAX_DEPTH = 50
"""Maximum nesting of lists and mappings in an option."""

Neutral = Annotated[T, ChangesNoResult()]
Integer = Annotated[int, Strict(), BeforeValidator(_to_integer)]
Boolean = Annotated[bool, Strict(), BeforeValidator(_to_boolean)]
Text = Annotated[str, BeforeValidator(_to_text)]
"""A string, or a path, which becomes one."""
FilePath = Annotated[str, Field(min_length=1), BeforeValidator(_to_text)]
"""The path of a file or folder; not empty."""
Number = Annotated[float, BeforeValidator(_to_number)]
"""A finite number; integers are converted, and strings such as "1e-3", which YAML 1.1 does not read as numbers."""
Numbers = Annotated[list[Number], Strict(), BeforeValidator(to_list)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[Integer, Field(ge=1)]
Options = Annotated[dict[str, Any], BeforeValidator(_to_plain)]
"""Keyword arguments for another library: scalars, or lists and mappings of scalars."""


@dataclass_transform(field_specifiers=(Field, dataclasses.field))
def settings_class(section: str = "", frozen: bool = False) -> Callable[[type[T]], type[T]]:
    """Make a class of settings: a dataclass that checks its values and reports every invalid one.

    Error messages prefix names with ``section``, the section of a recipe that has these settings.

    Example:
        >>> @settings_class("photo")
        ... class Photo:
        ...     size: Count = 8
        ...     flip: Neutral[Boolean] = True
        >>> Photo(size=0, flip=1)
        Traceback (most recent call last):
        mixmo.errors.InputError: 2 settings are wrong:
          photo.size is 0; it must be at least 1.
          photo.flip is 1; it must be true or false.
    """

    def decorate(cls: type[T]) -> type[T]:
        made: Any = pydantic_dataclass(cls, config=CONFIG, frozen=frozen)
        check, names = made.__init__, list(made.__pydantic_fields__)

        @functools.wraps(check)
        def initialize(self: Any, *values: Any, **named: Any) -> None:
            if len(values) > len(names):
                raise TypeError(f"{cls.__name__} takes {len(names)} arguments, and {len(values)} were given")
            given = dict(zip(names, values, strict=False))
            if twice := given.keys() & named.keys():
                raise TypeError(f"{cls.__name__} got {min(twice)} twice")
            try:
                check(self, **given, **named)
            except ValidationError as error:
                raise InputError(join_messages(describe_errors(error, made, section))) from None

        made.__init__ = initialize
        fields = made.__pydantic_fields__.items()
        meanings = [f"    {name}: {' '.join((field.description or '').split())}" for name, field in fields]
        made.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Args:", *meanings])
        return made  # type: ignore[no-any-return]

    return decorate


@functools.cache
def fields_of(section: type) -> Mapping[str, FieldInfo]:
    """Return every setting of a class of sections by its dotted name.

    The annotations lack metadata; the titles describe type and range in words.

    Example:
        >>> from mixmo.config.settings import Settings
        >>> [fields_of(Settings)[name].title for name in ("mixer.alpha", "data.split_seed", "mixer.draw_per")]
        ['number, 0 to 1,000,000', 'integer, ≥ 0 or null', 'batch, sample']
    """
    fields: dict[str, FieldInfo] = {}
    hints, marked = get_type_hints(section), get_type_hints(section, include_extras=True)
    for name, field in section.__pydantic_fields__.items():  # type: ignore[attr-defined]
        if dataclasses.is_dataclass(hint := hints[name]):
            fields |= {f"{name}.{key}": inner for key, inner in fields_of(hint).items()}  # type: ignore[arg-type]
        elif not any(isinstance(mark, FromElsewhere) for mark in field.metadata):
            fields[name] = copy.copy(field)
            fields[name].annotation, fields[name].title = hint, describe_type(marked[name])
    return fields


@functools.cache
def hints_of(section: type) -> Mapping[str, Any]:
    """Return the plain annotation of every setting of a class of sections, by its dotted name."""
    return {name: field.annotation for name, field in fields_of(section).items()}


def describe_type(hint: Any) -> str:
    """Describe the type and the range that an annotation allows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        marks = [part for mark in arguments[1:] for part in getattr(mark, "metadata", [mark])]
        limits = {key: f"{getattr(mark, key):,.10g}" for key in SIGNS for mark in marks if hasattr(mark, key)}
        if {"ge", "le"} <= limits.keys():
            return f"{describe_type(arguments[0])}, {limits['ge']} to {limits['le']}"
        return ", ".join([describe_type(arguments[0]), *(f"{SIGNS[key]} {limit}" for key, limit in limits.items())])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(describe_type, arguments)))
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin is list:
        return f"list of {describe_type(arguments[0])}"
    return TYPES.get(origin or hint, str(getattr(hint, "__name__", hint)))


TYPES = {int: "integer", float: "number", bool: "true or false", str: "text", dict: "mapping", type(None): "null",
         Any: "text or mapping"}  # fmt: skip
SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def join_messages(messages: Sequence[str]) -> str:
    """Return the only message, or the number of messages followed by one per line."""
    if len(messages) == 1:
        return messages[0]
    return "\n  ".join([f"{len(messages)} settings are wrong:", *messages])


def describe_errors(error: ValidationError, settings: type, section: str = "") -> list[str]:
    """Return one message per invalid value of a class of settings, or of a section of a recipe."""
    known, prefix = fields_of(settings), f"{section}." if section else ""
    by_location: dict[str, list[Any]] = {}
    for detail in error.errors(include_url=False):  # of a union, one per type
        by_location.setdefault(_format_location(detail["loc"], known), []).append(detail)
    messages = []
    for location, errors in by_location.items():
        name = prefix + location
        if errors[0]["type"] == "unexpected_keyword_argument":
            messages.append(explain_unknown(name, [prefix + key for key in known], "setting", "`mixmo fit --help`"))
        elif not any(other.startswith((f"{location}[", f"{location}.")) for other in by_location):
            messages.append(_message(name, errors))
    return messages


def _format_location(location: Sequence[int | str], known: Collection[str]) -> str:
    """Format pydantic's location of a value, without the names of a union's types."""
    text, settings = "", tuple(f"{name}{end}" for name in known for end in ".[")
    for before, part in zip(("", *location), location, strict=False):
        if isinstance(part, int):
            text += f"[{part}]"
        elif str(before).startswith("dict[") or not f"{text}.".startswith(settings):  # a key, or a setting's name
            text += f".{part}" if text else part
    return text


def _message(name: str, errors: Sequence[Any]) -> str:
    """Return the message for one value, whose errors are joined by "or"."""
    value, context = errors[0]["input"], errors[0].get("ctx") or {}
    if isinstance(context.get("error"), InputError):  # already a complete message
        return str(context["error"])
    if errors[0]["type"] == "missing":
        return f"{name} is missing."
    choices = re.findall(r"'([^']+)'", str(context.get("expected", "")))
    if errors[0]["type"] == "literal_error" and isinstance(value, str) and choices:
        return explain_unknown(value, choices, name)
    text, wanted = repr(value), dict.fromkeys(map(_wanted, errors))
    return f"{name or 'it'} is {text if len(text) <= 80 else f'{text[:77]}…'}; it must {' or '.join(wanted)}."


WANTED = {
    "bool_parsing": "be true or false",
    "bool_type": "be true or false",
    "dataclass_type": "be a section of settings",
    "dict_type": "be a mapping",
    "float_parsing": "be a number",
    "float_type": "be a number",
    "greater_than_equal": "be at least {limit}",
    "int_parsing": "be an integer",
    "int_type": "be an integer",
    "less_than_equal": "be at most {limit}",
    "list_type": "be a list",
    "string_too_short": "not be empty",
    "string_type": "be a string",
}
"""Our wording of pydantic's types of errors; other types have pydantic's message."""


def _wanted(error: Any) -> str:
    text = str((error.get("ctx") or {}).get("error") or error["msg"]).removeprefix("Input should ")
    if error["type"] in WANTED:
        return WANTED[error["type"]].format(limit=text.rpartition(" ")[2])
    return text.removeprefix("it must ")
