"""Classes of settings: pydantic dataclasses with clear error messages.

A class of settings is the one place for a setting's type, range, default and meaning, and for whether it changes
results (:data:`Neutral`). Help, keywords, files and checks follow from it.
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
    """Marks a setting that changes no result, such as how many processes decode images."""


class FromElsewhere:
    """Marks a field that is not a setting of its own: recipes, options and keywords leave it out."""


def _number(value: Any) -> Any:
    if isinstance(value, bool | np.bool_ | bytes):
        raise ValueError("it must be a number")
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value  # which will be refused


def take_integer(value: Any) -> Any:
    """Return another library's integer as a Python int; refuse floats, even whole numbers."""
    if isinstance(value, bool | float):
        raise ValueError("it must be an integer")
    return operator.index(value) if hasattr(value, "__index__") else value


def _boolean(value: Any) -> Any:
    return bool(value) if isinstance(value, np.bool_) else value


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def take_list(value: Any) -> Any:
    """Return a tuple or an array as a list."""
    return list(value) if isinstance(value, tuple | np.ndarray) else value


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a value as YAML can write it; refuse what it cannot."""
    if depth > DEEPEST:
        raise ValueError("it must not be nested so deeply")
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, list | tuple):
        return [_plain(each, depth + 1) for each in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("it must have texts for names")
        return {str.__str__(key): _plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it must hold finite numbers")
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):  # of a subclass, what YAML knows
            return kind.__str__(value) if kind is str else kind(value)
    raise ValueError("it must hold plain values: scalars, lists and mappings")


DEEPEST = 50
"""Levels of lists and mappings that an option may have."""

Neutral = Annotated[T, ChangesNoResult()]
Integer = Annotated[int, Strict(), BeforeValidator(take_integer)]
Boolean = Annotated[bool, Strict(), BeforeValidator(_boolean)]
Text = Annotated[str, BeforeValidator(_text)]
"""A text, or a path."""
Place = Annotated[str, Field(min_length=1), BeforeValidator(_text)]
"""A file or folder to write, which is never empty."""
Number = Annotated[float, BeforeValidator(_number)]
"""A finite number; 1 becomes 1.0, and so does "1e-3", which YAML 1.1 reads as a text."""
Numbers = Annotated[list[Number], Strict(), BeforeValidator(take_list)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[Integer, Field(ge=1)]
Options = Annotated[dict[str, Any], BeforeValidator(_plain)]
"""Keywords of another library: scalars, or lists and mappings of scalars."""


@dataclass_transform(field_specifiers=(Field, dataclasses.field))
def settings_class(section: str = "", frozen: bool = False) -> Callable[[type[T]], type[T]]:
    """Make a class of settings: a dataclass that checks its values, and names every one that is wrong.

    Errors name the section of a recipe whose settings these are.

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
                raise InputError(join_sentences(describe_errors(error, made, section))) from None

        made.__init__ = initialize
        fields = made.__pydantic_fields__.items()
        meanings = [f"    {name}: {' '.join((field.description or '').split())}" for name, field in fields]
        made.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Args:", *meanings])
        return made  # type: ignore[no-any-return]

    return decorate


@functools.cache
def fields_of(section: type) -> Mapping[str, FieldInfo]:
    """Return every setting of a class of sections by its dotted name.

    Each has its plain annotation, and as its title type and range in words.

    Example:
        >>> from mixmo.config.settings import Settings
        >>> [fields_of(Settings)[name].title for name in ("mixer.alpha", "data.split_seed", "mixer.draw_per")]
        ['number, 0 to 1,000,000', 'integer, ≥ 0 or null', 'batch, sample']
    """
    found: dict[str, FieldInfo] = {}
    hints, marked = get_type_hints(section), get_type_hints(section, include_extras=True)
    for name, field in section.__pydantic_fields__.items():  # type: ignore[attr-defined]
        if dataclasses.is_dataclass(hint := hints[name]):
            found |= {f"{name}.{key}": own for key, own in fields_of(hint).items()}  # type: ignore[arg-type]
        elif not any(isinstance(each, FromElsewhere) for each in field.metadata):
            found[name] = copy.copy(field)
            found[name].annotation, found[name].title = hint, describe_type(marked[name])
    return found


@functools.cache
def hints_of(section: type) -> Mapping[str, Any]:
    """Return the plain annotation of every setting of a class of sections, by its dotted name."""
    return {name: field.annotation for name, field in fields_of(section).items()}


def describe_type(hint: Any) -> str:
    """Return the type and the range that an annotation allows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [each for mark in arguments[1:] for each in getattr(mark, "metadata", [mark])]
        found = {key: f"{getattr(each, key):,.10g}" for key in SIGNS for each in limits if hasattr(each, key)}
        if {"ge", "le"} <= found.keys():
            return f"{describe_type(arguments[0])}, {found['ge']} to {found['le']}"
        return ", ".join([describe_type(arguments[0]), *(f"{SIGNS[key]} {value}" for key, value in found.items())])
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


def join_sentences(sentences: Sequence[str]) -> str:
    """Return a message: the only sentence, or the number of sentences and a line for each."""
    if len(sentences) == 1:
        return sentences[0]
    return "\n  ".join([f"{len(sentences)} settings are wrong:", *sentences])


def describe_errors(error: ValidationError, settings: type, section: str = "") -> list[str]:
    """Return a sentence for each value that is wrong of a class of settings, or of a section of a recipe."""
    known, prefix = fields_of(settings), f"{section}." if section else ""
    found: dict[str, list[Any]] = {}
    for each in error.errors(include_url=False):
        found.setdefault(_place(each["loc"], known), []).append(each)  # a union has an error for each of its types
    sentences = []
    for place, errors in found.items():
        name = prefix + place
        if errors[0]["type"] == "unexpected_keyword_argument":
            sentences.append(explain_unknown(name, [prefix + own for own in known], "setting", "`mixmo fit --help`"))
        elif not any(other != place and other.startswith(f"{place}[") for other in found):
            sentences.append(_sentence(name, errors))
    return sentences


def _place(location: Sequence[int | str], known: Collection[str]) -> str:
    """Return where a value is; within a setting without pydantic's names for the types of a union."""
    place = ""
    for part in location:
        if isinstance(part, int):
            place += f"[{part}]"
        elif place.partition("[")[0] not in known:
            place += f".{part}" if place else part
    return place


def _sentence(name: str, errors: Sequence[Any]) -> str:
    """Return what is wrong with one value."""
    value, context = errors[0]["input"], errors[0].get("ctx") or {}
    if isinstance(context.get("error"), InputError):  # a whole sentence
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
    "string_type": "be a text",
}
"""Messages for pydantic's types of errors; other types keep pydantic's own."""


def _wanted(error: Any) -> str:
    text = str((error.get("ctx") or {}).get("error") or error["msg"]).removeprefix("Input should ")
    if error["type"] in WANTED:
        return WANTED[error["type"]].format(limit=text.rpartition(" ")[2])
    return text.removeprefix("it must ")
