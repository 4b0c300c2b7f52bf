"""Command-line options from classes of settings: parsing and help."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from pydantic import Field
from pydantic.fields import FieldInfo

from mixmo.config.parsing import is_list, parse_arguments
from mixmo.config.plan import flatten
from mixmo.config.recipes import load_recipe
from mixmo.config.settings import Settings
from mixmo.errors import InputError
from mixmo.validation import Boolean, fields_of, hints_of

T = TypeVar("T")


class _PositionalMark:
    """Marks a positional argument, such as a run or images."""


Positional = Annotated[T, _PositionalMark()]
Overwrite = Annotated[Boolean, Field(description="Replace files in the way that mixmo did not write.")]
Download = Annotated[Boolean, Field(description="Allow downloads of datasets and networks.")]


class _Formatter(DefaultHelpFormatter):
    """Prints a setting's type and range, instead of its annotation."""

    def _get_type_str(self, action: Any) -> str | None:
        return getattr(action, "described", None)


class Command(NamedTuple):
    """A command, its description, and the classes of settings whose fields are its options.

    The first class has the positional arguments. If ``takes_settings``, the settings of a run are options, too.
    """

    name: str
    about: str
    options: tuple[type, ...]
    takes_settings: bool = False

    @property
    def positional(self) -> list[str]:
        """The names of the positional arguments, in order."""
        return [name for name, field in fields_of(self.options[0]).items() if _is_positional(field)]

    def parse(self, arguments: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
        """Return an instance of each class of options, and the given settings by their dotted names.

        With ``--help``, print the help, with the defaults of a named recipe, and raise SystemExit.
        """
        if {"-h", "--help"} & set(arguments):
            self._print_help([word for word in arguments if word not in ("-h", "--help")])
            raise SystemExit(0)
        texts, values = self._split(arguments)
        values |= self._assign(texts)
        instances = []
        for kind in self.options:
            for key, field in fields_of(kind).items():
                if key not in values and field.is_required():
                    option = key if key in self.positional else f"--{key}"
                    raise InputError(f"{self.name} needs {option}: {field.description}")
            instances.append(kind(**{key: values.pop(key) for key in fields_of(kind) if key in values}))
        return instances, values

    def parser(self) -> ArgumentParser:
        """Return a parser of all options, for help and shell completion."""
        positional = [name.upper() + "…" * is_list(hints_of(self.options[0])[name]) for name in self.positional]
        usage = " ".join(["mixmo", self.name, *positional, "[--name value …]"])
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

    def _print_help(self, arguments: Sequence[str]) -> None:
        """Print the help; the settings of a recipe, if the arguments name one, are the default values."""
        recipe, about = dict[str, Any](), self.about
        if self.takes_settings:
            with suppress(InputError):  # not a recipe
                for name in self._split(arguments)[0][:1]:
                    recipe, about = load_recipe(name), f"{about} Default values are those of {name}."
        parser = self._replace(about=about).parser()
        parser.set_defaults({name: value for name, value in flatten(recipe) if name in fields_of(Settings)})
        parser.print_help()

    def _split(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """Return the positional arguments, and the values of options by name."""
        known = {key: hint for kind in self.options for key, hint in hints_of(kind).items()}
        known |= hints_of(Settings) if self.takes_settings else {}
        named = {key: hint for key, hint in known.items() if key not in self.positional}
        return parse_arguments(arguments, named, self.name)

    def _assign(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return positional arguments by name; a list, always the last, takes the rest."""
        values: dict[str, Any] = dict(zip(self.positional, texts, strict=False))
        rest = texts[len(values) :]
        if values and is_list(hints_of(self.options[0])[last := [*values][-1]]):
            return {**values, last: [values[last], *rest]}
        if rest:
            raise InputError(f"unknown argument {rest[0]!r}; `mixmo {self.name} --help` lists the options.")
        return values


def _is_positional(field: FieldInfo) -> bool:
    return any(isinstance(mark, _PositionalMark) for mark in field.metadata)


def _add(parser: Any, name: str, field: FieldInfo) -> None:
    """Add an option to a parser."""
    text = re.sub(r":\w+:`~?([\w.]+)`", r"\1", (field.description or "").replace("``", ""))
    text = " ".join(text.split()).replace("%", "%%")
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if _is_positional(field):
        many = "*" if not field.is_required() else "+" if is_list(field.annotation) else None
        parser.add_argument(name, help=text, **({"nargs": many} if many else {}))
    else:
        hint = field.annotation
        kind: dict[str, Any] = {"nargs": "+", "type": get_args(hint)[0]} if get_origin(hint) is list else {"type": hint}
        action = parser.add_argument(f"--{name}", default=default, help=text, **kind)
        if "{" not in str(action.metavar):  # which would list the choices
            action.described = field.title
