"""From a recipe and overrides to what a run needs: typed, checked settings and the trainer's options."""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning import Trainer

from mixmo.errors import InputError, one_of
from mixmo.hardware import PRECISIONS, default_compile, default_precision, evaluation_factor, training_device
from mixmo.recipes import Recipe
from mixmo.settings import Settings

TRAINER_OPTIONS = (
    "accelerator", "precision", "max_epochs", "limit_train_batches", "gradient_clip_val", "deterministic",
    "enable_progress_bar", "profiler",
)  # fmt: skip
"""What a recipe may set of Lightning's Trainer; the rest is ours, or would break that draws follow the step."""


FOLDERS = {
    "fit": ("run", "the run's folder; runs/NAME of the recipe by default"),
    "preview": ("out", "the folder to write into; preview/NAME of the recipe by default"),
}
"""The option of each command that names the folder it makes."""


def settings_parser(command: str) -> ArgumentParser:
    """Return the parser of a command that takes a recipe: every key of a recipe is an option."""
    parser = ArgumentParser(prog=f"mixmo {command} RECIPE", exit_on_error=False)
    folder, description = FOLDERS[command]
    parser.add_argument(f"--{folder}", type=str | None, default=None, help=description)
    parser.add_class_arguments(Settings, as_group=False)
    skipped = set(inspect.signature(Trainer).parameters) - set(TRAINER_OPTIONS)
    parser.add_class_arguments(Trainer, "trainer", skip=skipped, instantiate=False)
    return parser


class Plan(NamedTuple):
    """A run as it was asked for.

    Attributes:
        settings: The run's settings.
        trainer: Keywords of Lightning's Trainer.
        yaml: Both as YAML, for the run's folder.
        folder: The folder asked for, if any.
    """

    settings: Settings
    trainer: dict[str, Any]
    yaml: str
    folder: str | None


def make_plan(recipe: Recipe, overrides: Sequence[str] = (), command: str = "fit") -> Plan:
    """Return what a recipe and ``--key value`` overrides ask for; what both leave open follows from the device.

    Args:
        recipe: As from ``load_recipe``.
        overrides: Words of the command line.
        command: Whose words they are: ``fit`` or ``preview``.

    Raises:
        InputError: for an unknown key (with near matches) or a value of the wrong type or range.

    Example:
        >>> from mixmo.recipes import load_recipe
        >>> plan = make_plan(load_recipe("quickstart"), ["--data.batch_size=16"])
        >>> plan.settings.data.batch_size, plan.trainer["max_epochs"]
        (16, 20)
    """
    parser = settings_parser(command)
    known = set(parser.get_defaults().keys())
    leaves = dict(_leaves(recipe, known))
    given = [*leaves]
    given += [word[2:].partition("=")[0] for word in overrides if word.startswith("--") and word != "--help"]
    for key in given:
        if ".options." not in key:  # anything may stand there: the model or the optimiser knows
            one_of(key, known, "setting")
    parser.set_defaults(leaves)
    parsed = parse(parser, overrides)
    folder = parsed.pop(FOLDERS[command][0])
    device = training_device(parsed.trainer.accelerator)
    if parsed.trainer.precision is None:
        parsed.trainer.precision = default_precision(device)
    one_of(str(parsed.trainer.precision), PRECISIONS, "trainer.precision")
    if parsed.model.compile is None:
        parsed.model.compile = default_compile(device)
    if parsed.data.eval_batch_size is None:
        parsed.data.eval_batch_size = parsed.data.batch_size * evaluation_factor(device)
    yaml = parser.dump(parsed)
    trainer = vars(parsed.pop("trainer"))
    if (trainer["max_epochs"] or 0) < 1:
        raise InputError(f"trainer.max_epochs is {trainer['max_epochs']}; it is 1 or more.")
    return Plan(Settings(**vars(parser.instantiate(parsed))), trainer, yaml, folder)


def _leaves(recipe: Mapping[str, Any], known: Container[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a recipe as dotted keys and values; mappings under a known key are values."""
    for key, value in recipe.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in known:
            yield from _leaves(value, known, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Parse words; say what is wrong in one line."""
    try:
        return parser.parse_args(list(words))
    except (ArgumentError, TypeError, KeyError) as error:
        raise InputError(" ".join(str(error).split())) from error
