"""Command-line options from classes: parsing, help and shell completion."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from pydantic import Field
from pydantic.fields import FieldInfo

from mixmo.config.parsing import is_list, read_words
from mixmo.config.settings import Settings
from mixmo.errors import InputError
from mixmo.validation import Boolean, fields_of, hints_of, types_of

T = TypeVar("T")


class StandsAlone:
    """Marks a positional argument of the command line: a run, images."""


Word = Annotated[T, StandsAlone()]
Overwrite = Annotated[Boolean, Field(description="Replace files that mixmo did not write there.")]
Download = Annotated[Boolean, Field(description="Allow downloads of datasets and networks.")]


class _Formatter(DefaultHelpFormatter):
    """Says an option's range in words, where jsonargparse has the annotation."""

    def _get_type_str(self, action: Any) -> str | None:
        return getattr(action, "described", None)


class Command(NamedTuple):
    """A command: what it is for, and the classes whose fields are its options.

    Attributes:
        name: As in ``mixmo NAME``.
        about: One sentence.
        options: Classes of settings (:mod:`mixmo.validation`); the first has the positional arguments.
        takes_settings: Whether every setting of a run is an option, too.
    """

    name: str
    about: str
    options: tuple[type, ...]
    takes_settings: bool = False

    def read(self, words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
        """Return an instance of each class of options, and the settings that were given, by their dotted names.

        Prints the help, and ends, where it is asked for.

        Raises:
            InputError: for an unknown option, a missing word, or values that do not fit.
        """
        if {"-h", "--help"} & set(words):
            self.parser().print_help()
            raise SystemExit(0)
        own = [hints_of(each) for each in self.options]
        known = {key: hint for hints in own for key, hint in hints.items()}
        known |= hints_of(Settings) if self.takes_settings else {}
        alone = [name for name, field in fields_of(self.options[0]).items() if _stands_alone(field)]
        named = {key: hint for key, hint in known.items() if key not in alone}
        given, values = read_words(words, named, self.name)
        values |= self._assign(alone, given)
        chosen = []
        for kind, hints in zip(self.options, own, strict=True):
            if missing := next((key for key in hints if key not in values and fields_of(kind)[key].is_required()), ""):
                raise InputError(f"{self.name} needs {'' if missing in alone else '--'}{self._describe(missing)}")
            chosen.append(kind(**{key: values.pop(key) for key in hints if key in values}))
        return chosen, values

    def parser(self) -> ArgumentParser:
        """Return a parser of all options, for the help and for completion by a shell."""
        first = fields_of(self.options[0]).items()
        alone = [name.upper() + "…" * is_list(field.annotation) for name, field in first if _stands_alone(field)]
        usage = " ".join(["mixmo", self.name, *alone, "[--name value …]"])
        parser = ArgumentParser(
            prog=f"mixmo {self.name}", usage=usage, exit_on_error=False, description=self.about,
            formatter_class=_Formatter,
        )  # fmt: skip
        for kind in self.options:
            for name, field in fields_of(kind).items():
                _add(parser, name, field, hints_of(kind)[name], types_of(kind)[name])
        if self.takes_settings:
            settings = fields_of(Settings)
            for section, names in itertools.groupby(settings, lambda name: name.partition(".")[0]):
                group = parser.add_argument_group(section)
                for name in names:
                    _add(group, name, settings[name], hints_of(Settings)[name], types_of(Settings)[name])
        return parser

    def _assign(self, names: Sequence[str], given: Sequence[str]) -> dict[str, Any]:
        """Return positional arguments by name; a list takes all that are left."""
        values: dict[str, Any] = {}
        rest = list(given)
        for name in names:
            if not rest:
                break
            if is_list(hints_of(self.options[0])[name]):
                return {**values, name: rest}
            values[name] = rest.pop(0)
        if rest:
            raise InputError(f"{rest[0]!r} is not understood; `mixmo {self.name} --help` lists the options.")
        return values

    def _describe(self, name: str) -> str:
        field = next(fields_of(kind)[name] for kind in self.options if name in fields_of(kind))
        text = (field.description or "").rstrip(".")
        return f"{name}: {text}." if text else f"{name}."


def _stands_alone(field: FieldInfo) -> bool:
    return any(isinstance(each, StandsAlone) for each in field.metadata)


def _add(parser: Any, name: str, field: FieldInfo, hint: Any, described: str) -> None:
    """Add an option to a parser."""
    text = re.sub(r":\w+:`~?([\w.]+)`", r"\1", (field.description or "").replace("``", ""))
    text = " ".join(text.split()).replace("%", "%%")
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if _stands_alone(field):
        many = "*" if not field.is_required() else "+" if is_list(hint) else None
        parser.add_argument(name, help=text, **({"nargs": many} if many else {}))
    else:
        of_list = get_origin(hint) is list
        takes: dict[str, Any] = {"nargs": "+", "type": get_args(hint)[0]} if of_list else {"type": hint}
        action = parser.add_argument(f"--{name}", default=default, help=text, **takes)
        if "{" not in str(action.metavar):  # which names the choices
            action.described = described
