"""From a recipe and overrides to what a run needs: typed, checked settings and the trainer's options."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from mixmo.config.checking import checked, flattened, hints
from mixmo.config.hardware import default_compile, default_precision, evaluation_factor, training_device
from mixmo.config.recipes import Recipe
from mixmo.config.settings import Settings, TrainerSettings
from mixmo.config.starting import followed
from mixmo.errors import InputError, one_of
from mixmo.files import yaml_text

FOLDERS = {
    "fit": ("run", "the run's folder; runs/NAME of the recipe by default"),
    "preview": ("out", "the folder to write into; preview/NAME of the recipe by default"),
}
"""The option of each command that names the folder it makes."""

Section = TypeVar("Section")


class Plan(NamedTuple):
    """A run as it was asked for.

    Attributes:
        settings: The run's settings; what they leave open follows from this machine.
        trainer: Keywords of Lightning's Trainer, likewise.
        yaml: Both as YAML, for the run's folder, with what is left open left open.
        folder: The folder asked for, if any.
        resolved: What followed from this machine, in sections.
    """

    settings: Settings
    trainer: dict[str, Any]
    yaml: str
    folder: str | None
    resolved: dict[str, dict[str, Any]]


@functools.cache
def known_settings() -> Mapping[str, Any]:
    """Return the annotation of every setting by its dotted name.

    Example:
        >>> known_settings()["trainer.deterministic"]
        <class 'bool'>
    """
    return dict(hints(Settings)) | {f"trainer.{key}": hint for key, hint in hints(TrainerSettings).items()}


def make_plan(recipe: Recipe, overrides: Sequence[str] = (), command: str = "fit") -> Plan:
    """Return what a recipe and ``--key value`` overrides ask for; the rest follows from the start and the device.

    Args:
        recipe: As from ``load_recipe``.
        overrides: Words of the command line.
        command: Whose words they are: ``fit`` or ``preview``.

    Raises:
        InputError: for an unknown key or word (with near matches) or a value of the wrong type or range.

    Example:
        >>> from mixmo.config.recipes import load_recipe
        >>> plan = make_plan(load_recipe("digits-cut"), ["--data.batch_size=16"])
        >>> plan.settings.data.batch_size, plan.trainer["max_epochs"]
        (16, 20)
    """
    known = known_settings()
    values = {name: checked(value, known[name], name) for name, value in flattened(recipe, known)}
    folder = None
    for name, text in pairs(overrides, {**known, FOLDERS[command][0]: str}, command):
        if name == FOLDERS[command][0]:
            if not text:
                raise InputError(f"--{name} names no folder.")
            folder = text
        elif owner := _owner(name, known):
            own = {name.removeprefix(f"{owner}."): parsed(text, Any, name)}
            values[owner] = values.get(owner, {}) | own
        else:
            values[name] = parsed(text, known[name], name)
    values |= {name: checked(value, known[name], name) for name, value in followed(values).items()}
    settings = _built(Settings, values)
    trainer = _built(TrainerSettings, values, "trainer.")
    text = yaml_text(dataclasses.asdict(settings) | {"trainer": dataclasses.asdict(trainer)})
    resolved = _resolve(settings, trainer)
    return Plan(settings, dataclasses.asdict(trainer), text, folder, resolved)


def pairs(words: Sequence[str], known: Mapping[str, Any], command: str = "fit") -> list[tuple[str, str]]:
    """Return the names and texts of ``--name=text`` and ``--name text``; a bare ``--flag`` has the text ``true``.

    Args:
        words: The command line behind the recipe's name.
        known: The annotation of every option by its name; those that are true or false are flags.
        command: The command, for errors.

    Raises:
        InputError: for a word that is no option, an unknown option (none is abbreviated), or one without its value.

    Example:
        >>> pairs(["--seed", "1", "--data.flip"], known_settings())
        [('seed', '1'), ('data.flip', 'true')]
    """
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise InputError(f"{word!r} is not understood; settings are --name=value.")
        if not _owner(name, known):
            one_of(name, known, "setting", f"`mixmo {command} --help`")
        if not equals and _is_flag(known.get(name)):
            text = _flag_text(rest)
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"--{name} needs a value: --{name}=….")
            text = rest.pop(0)
        found.append((name, text))
    return found


def _owner(name: str, known: Mapping[str, Any]) -> str | None:
    """Return the setting that holds another library's options, of which this is one."""
    return next((each for each in known if each.endswith(".options") and name.startswith(f"{each}.")), None)


def _is_flag(hint: Any) -> bool:
    return hint in (bool, bool | None)


def _flag_text(rest: list[str]) -> str:
    """Return the text of a flag: the next word where that says yes or no, else ``true``."""
    return rest.pop(0) if rest and truth(rest[0]) is not None else "true"


def truth(text: str) -> bool | None:
    """Return what a text says: true, yes and on, or false, no and off, in any case; ``None`` for all others.

    Example:
        >>> truth("True"), truth("no"), truth("maybe")
        (True, False, None)
    """
    return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(text.lower())


def parsed(text: str, hint: Any, name: str) -> Any:
    """Return what a word of the command line says: a text where one is wanted, else what YAML reads.

    Args:
        text: The word.
        hint: The option's annotation.
        name: The option, for the error.

    Raises:
        InputError: if the text is no such value.

    Example:
        >>> parsed("YES", bool, "data.flip"), parsed("1e-3", float, "optimizer.lr")
        (True, 0.001)
    """
    if hint is str:
        return text
    if _is_flag(hint) and (said := truth(text)) is not None:
        return said
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        value = text
    try:
        return checked(value, hint, name)
    except InputError:
        if not isinstance(value, str) and "str" in str(hint):  # a name that looks like a number
            return checked(text, hint, name)
        raise


def _built(section: type[Section], values: Mapping[str, Any], prefix: str = "") -> Section:
    """Return a dataclass of the checked values under its names."""
    found: dict[str, Any] = {}
    for each in dataclasses.fields(section):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(each.default_factory):
            found[each.name] = _built(each.default_factory, values, f"{prefix}{each.name}.")  # type: ignore[arg-type]
        elif f"{prefix}{each.name}" in values:
            found[each.name] = values[f"{prefix}{each.name}"]
    return section(**found)


def _resolve(settings: Settings, trainer: TrainerSettings) -> dict[str, dict[str, Any]]:
    """Fill in what the settings leave open, and return it."""
    device = training_device(trainer.accelerator)
    if trainer.precision is None:
        trainer.precision = default_precision(device)
    if settings.model.compile is None:
        settings.model.compile = default_compile(device)
    if settings.data.eval_batch_size is None:
        settings.data.eval_batch_size = settings.data.batch_size * evaluation_factor(device)
    return {
        "trainer": {"precision": trainer.precision},
        "model": {"compile": settings.model.compile},
        "data": {"eval_batch_size": settings.data.eval_batch_size},
    }


def print_help(command: str) -> None:
    """Print every setting of a command that takes a recipe, with its type, default and meaning."""
    about = {
        "fit": "Train a recipe (a name that `mixmo recipes` lists, or a YAML file), or resume a run, by its folder.",
        "preview": "Draw what a network sees in training with a recipe, and every kind of mask.",
    }[command]
    parser = ArgumentParser(prog=f"mixmo {command} RECIPE", exit_on_error=False, description=about)
    folder, description = FOLDERS[command]
    parser.add_argument(f"--{folder}", type=str | None, default=None, help=description)
    if command == "preview":
        parser.add_argument("--overwrite", action="store_true", help="replace files that mixmo did not write there")
    parser.add_class_arguments(Settings, as_group=False)
    parser.add_class_arguments(TrainerSettings, "trainer")
    parser.print_help()


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Parse words; say what is wrong in one line. No option is abbreviated, and every flag may have a value."""
    parser.allow_abbrev = False
    try:
        return parser.parse_args(list(_spelled(parser, words)))
    except (ArgumentError, TypeError, KeyError) as error:
        raise InputError(" ".join(str(error).split())) from error


def _spelled(parser: ArgumentParser, words: Sequence[str]) -> Iterator[str]:
    """Yield words whose options are known, flags with the value ``true`` or ``false``."""
    options = {name: action for name, action in parser._option_string_actions.items() if name.startswith("--")}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.partition("=")
        if not word.startswith("--") or word == "--":
            yield word
            continue
        action = options[one_of(name, options, "option", f"`{parser.prog} --help`")]
        if action.const is not True and not isinstance(action.default, bool):
            yield word
            continue
        text = text if equals else _flag_text(rest)
        if truth(text) is None:
            raise InputError(f"{name} is {text!r}; it is true or false.")
        yield f"{name}={str(truth(text)).lower()}"
