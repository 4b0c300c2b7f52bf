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
from mixmo.validation import Boolean, fields_of, hints_of

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
    """A command: what it is for, and the classes of settings whose fields are its options.

    The first class has the positional arguments. Every setting of a run may be an option, too.
    """

    name: str
    about: str
    options: tuple[type, ...]
    takes_settings: bool = False

    def read(self, words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
        """Return an instance of each class of options, and the settings that were given, by their dotted names.

        Prints the help, and ends, where it is asked for.
        """
        if {"-h", "--help"} & set(words):
            self.parser().print_help()
            raise SystemExit(0)
        known = {key: hint for kind in self.options for key, hint in hints_of(kind).items()}
        known |= hints_of(Settings) if self.takes_settings else {}
        alone = [name for name, field in fields_of(self.options[0]).items() if _stands_alone(field)]
        named = {key: hint for key, hint in known.items() if key not in alone}
        given, values = read_words(words, named, self.name)
        values |= self._assign(alone, given)
        chosen = []
        for kind in self.options:
            for key, field in fields_of(kind).items():
                if key not in values and field.is_required():
                    raise InputError(f"{self.name} needs {'' if key in alone else '--'}{key}: {field.description}")
            chosen.append(kind(**{key: values.pop(key) for key in fields_of(kind) if key in values}))
        return chosen, values

    def parser(self) -> ArgumentParser:
        """Return a parser of all options, for the help and for completion by a shell."""
        first = fields_of(self.options[0]).items()
        alone = [name.upper() + "…" * is_list(field.annotation) for name, field in first if _stands_alone(field)]
        usage = " ".join(["mixmo", self.name, *alone, "[--name value …]"])
        parser = ArgumentParser(
            f"mixmo {self.name}", usage, self.about, formatter_class=_Formatter, exit_on_error=False
        )
        for kind in self.options:
            for name, field in fields_of(kind).items():
                _add(parser, name, field)
        if self.takes_settings:
            settings = fields_of(Settings)
            for section, names in itertools.groupby(settings, lambda name: name.partition(".")[0]):
                group = parser.add_argument_group(section)
                for name in names:
                    _add(group, name, settings[name])
        return parser

    def _assign(self, names: Sequence[str], given: Sequence[str]) -> dict[str, Any]:
        """Return positional arguments by name; a list, which is the last of them, takes all that are left."""
        values: dict[str, Any] = dict(zip(names, given, strict=False))
        rest = list(given[len(names) :])
        if values and is_list(hints_of(self.options[0])[last := [*values][-1]]):
            return {**values, last: [values[last], *rest]}
        if rest:
            raise InputError(f"{rest[0]!r} is not understood; `mixmo {self.name} --help` lists the options.")
        return values


def _stands_alone(field: FieldInfo) -> bool:
    return any(isinstance(each, StandsAlone) for each in field.metadata)


def _add(parser: Any, name: str, field: FieldInfo) -> None:
    """Add an option to a parser."""
    text = re.sub(r":\w+:`~?([\w.]+)`", r"\1", (field.description or "").replace("``", ""))
    text = " ".join(text.split()).replace("%", "%%")
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if _stands_alone(field):
        many = "*" if not field.is_required() else "+" if is_list(field.annotation) else None
        parser.add_argument(name, help=text, **({"nargs": many} if many else {}))
    else:
        of_list, hint = get_origin(field.annotation) is list, field.annotation
        takes: dict[str, Any] = {"nargs": "+", "type": get_args(hint)[0]} if of_list else {"type": hint}
        action = parser.add_argument(f"--{name}", default=default, help=text, **takes)
        if "{" not in str(action.metavar):  # which names the choices
            action.described = field.title
