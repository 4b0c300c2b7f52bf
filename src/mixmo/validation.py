"""Classes of settings: pydantic dataclasses, every wrong value of which is told in a sentence that names it.

A class of settings is the one place for a setting's type, range, default and meaning, and for whether it changes
results (:data:`Neutral`). Help, keywords, files and checks follow from it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs
from typing_extensions import dataclass_transform

from mixmo.errors import InputError, one_of

T = TypeVar("T")

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ChangesNoResult:
    """Marks a setting that changes no result, such as how many processes decode images."""


class FromElsewhere:
    """Marks an argument that is no setting of its own, but follows from another."""


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("it must be a number")
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value  # which will be refused


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it must hold finite numbers")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError("it must hold plain values: scalars, lists and mappings")


Neutral = Annotated[T, ChangesNoResult()]
Integer = Annotated[int, Strict()]
Boolean = Annotated[bool, Strict()]
Number = Annotated[float, BeforeValidator(_number)]
"""A finite number; 1 becomes 1.0, and so does "1e-3", which YAML 1.1 reads as a text."""
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[Integer, Field(ge=1)]
Options = Annotated[dict[str, Any], BeforeValidator(_plain)]
"""Keywords of another library: scalars, or lists and mappings of scalars."""


@dataclass_transform(field_specifiers=(Field, dataclasses.field))
def settings_class(section: str = "", frozen: bool = False) -> Callable[[type[T]], type[T]]:
    """Make a class of settings: a dataclass that checks its values.

    Args:
        section: The section of a recipe whose settings these are, for errors.
        frozen: Whether values cannot be set later.

    Raises:
        InputError: from the class, naming every value that is wrong.

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
        check = made.__init__

        @functools.wraps(check)
        def initialize(self: Any, *values: Any, **named: Any) -> None:
            try:
                check(self, *values, **named)
            except ValidationError as error:
                raise InputError(join_sentences(describe_errors(error, made, section))) from None

        made.__init__ = initialize
        return made  # type: ignore[no-any-return]

    return decorate


def check_value(value: Any, hint: Any, name: str) -> Any:
    """Return a value as an annotation has it.

    Raises:
        InputError: naming it, if it does not fit.

    Example:
        >>> check_value("1e-3", Number, "lr")
        0.001
        >>> check_value([True, 1], list[bool], "right")
        Traceback (most recent call last):
        mixmo.errors.InputError: right[1] is 1; it must be true or false.
    """
    try:
        return _adapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        sentences = [_sentence(name + path, each) for path, each in _grouped(error, value)]
        raise InputError(join_sentences(sentences)) from None


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


@functools.cache
def fields_of(section: type) -> Mapping[str, FieldInfo]:
    """Return what is known of every setting of a class of sections, by its dotted name."""
    found: dict[str, FieldInfo] = {}
    hints = get_type_hints(section)
    for name, field in section.__pydantic_fields__.items():  # type: ignore[attr-defined]
        if dataclasses.is_dataclass(hints[name]):
            found |= {f"{name}.{key}": own for key, own in fields_of(hints[name]).items()}  # type: ignore[arg-type]
        elif not any(isinstance(each, FromElsewhere) for each in field.metadata):
            found[name] = field
    return found


@functools.cache
def hints_of(section: type) -> Mapping[str, Any]:
    """Return the plain annotation of every setting of a class of sections, by its dotted name.

    Example:
        >>> from mixmo.config.settings import Settings
        >>> hints_of(Settings)["data.batch_size"]
        <class 'int'>
    """
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        inside = hints_of(hint).items() if dataclasses.is_dataclass(hint) else ()  # type: ignore[arg-type]
        found |= {f"{name}.{key}": own for key, own in inside} or {name: hint}
    return {name: found[name] for name in fields_of(section)}


def join_sentences(sentences: Sequence[str]) -> str:
    """Return what is wrong: one sentence, or how many and a line for each."""
    if len(sentences) == 1:
        return sentences[0]
    return "\n  ".join([f"{len(sentences)} settings are wrong:", *sentences])


def describe_errors(error: ValidationError, settings: type, section: str = "") -> list[str]:
    """Return a sentence for each setting that is wrong.

    Args:
        error: Of validating the settings.
        settings: Their class.
        section: The section that they are, if they are one.
    """
    values = error.errors()[0]["input"] if len(error.errors()) == 1 else None
    given = next((each["input"] for each in error.errors() if isinstance(each["input"], ArgsKwargs)), values)
    known, prefix = fields_of(settings), f"{section}." if section else ""
    found = []
    for path, each in _grouped(error, given):
        name = prefix + path.removeprefix(".")
        if each[0]["type"] == "unexpected_keyword_argument":
            found.append(unknown_setting(name, [prefix + own for own in known]))
        else:
            found.append(_sentence(name, each))
    return found


def unknown_setting(name: str, known: Iterable[str], what: str = "setting", listed: str = "`mixmo fit --help`") -> str:
    """Return a sentence that names an unknown setting, and what is near it."""
    try:
        one_of(name, known, what, listed)
    except InputError as error:
        return str(error)
    return f"{name} is no {what} that can be set here."


def _grouped(error: ValidationError, value: Any) -> Iterator[tuple[str, list[Any]]]:
    """Yield errors by the path of the value they are of; a union has one for each of its types."""
    found: dict[str, list[Any]] = {}
    for each in error.errors(include_url=False):
        found.setdefault(_path(each["loc"]), []).append(each)
    for path, errors in found.items():
        if not any(other != path and other.startswith(path) and other[len(path)] in ".[" for other in found):
            yield path, errors


def _path(location: Sequence[int | str]) -> str:
    """Return where a value is, without the names that pydantic has for the types of a union."""
    parts = [f"[{each}]" if isinstance(each, int) else f".{each}" for each in location if not _is_type(each)]
    return "".join(parts)


def _is_type(part: int | str) -> bool:
    return isinstance(part, str) and ("[" in part or part in TYPES)


TYPES = {"int", "float", "str", "bool", "none", "constrained-int", "constrained-float", "constrained-str"}
"""What pydantic calls the types of a union."""


def _sentence(name: str, errors: Sequence[Any]) -> str:
    """Return what is wrong with one value."""
    cause = (errors[0].get("ctx") or {}).get("error")
    if isinstance(cause, InputError):  # a whole sentence
        return str(cause)
    value, name = errors[0]["input"], name.removeprefix(".")
    if errors[0]["type"] == "literal_error" and isinstance(value, str):
        choices = errors[0]["ctx"]["expected"].replace(" or ", ", ").split(", ")
        return unknown_setting(value, [each.strip("'") for each in choices], name)
    wanted = dict.fromkeys(_wanted(each) for each in errors)
    return f"{name} is {_shown(value)}; it must {' or '.join(wanted)}."


WORDS = {
    r", unable to parse.*": "",
    r"a valid integer": "an integer",
    r"a valid boolean": "true or false",
    r"a valid dictionary": "a mapping",
    r"a valid string": "a text",
    r"a valid (number|list)": r"a \1",
    r"a dictionary or an instance of \w+": "a section of settings",
    r"(greater|less) than or equal to (\S+)": r"at \1 \2",
    r"at greater": "at least",
    r"at less": "at most",
}
"""How pydantic's words are said here, in their order."""


def _wanted(error: Any) -> str:
    text = str((error.get("ctx") or {}).get("error") or error["msg"])
    text = text.removeprefix("Input should ").removeprefix("it must ")
    for pattern, words in WORDS.items():
        text = re.sub(pattern, words, text)
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
