"""The checked settings of a run, from a recipe and overrides."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mixmo.config.hardware import default_compile, default_precision, training_device
from mixmo.config.parsing import owner_of, parse_arguments
from mixmo.config.preprocessing import inherit_settings
from mixmo.config.recipes import Recipe, nest
from mixmo.config.settings import Settings, known_settings, values_of
from mixmo.errors import InputError
from mixmo.files import yaml_text


class Plan(NamedTuple):
    """The checked settings of a run.

    Attributes:
        settings: The settings, open ones resolved on this machine.
        yaml: The settings as YAML, as requested: open ones stay open.
        resolved: The values of open settings on this machine, by section.
    """

    settings: Settings
    yaml: str
    resolved: dict[str, dict[str, Any]]

    @property
    def epochs(self) -> int:
        """The number of epochs."""
        return self.settings.trainer.max_epochs or 0


def make_plan(recipe: Recipe, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Plan:
    """Check a recipe with overrides, and resolve open settings from pretrained weights and the device.

    Overrides are command-line arguments, ``--name value``, or values by dotted names. Errors report every unknown
    setting, with similar names, and every value of a wrong type or range.

    Example:
        >>> from mixmo.config.recipes import load_recipe
        >>> plan = make_plan(load_recipe("digits-cut"), ["--data.batch_size=16"])
        >>> plan.settings.data.batch_size, plan.epochs
        (16, 20)
    """
    if not isinstance(overrides, Mapping):
        positional, overrides = parse_arguments(overrides, known_settings(), "fit")
        if positional:
            raise InputError(f"unknown argument {positional[0]!r}; settings are --name=value.")
    values = _override(nest(recipe, "the recipe"), overrides)
    if isinstance(mixer := values.get("mixer"), Mapping) and "num_members" in mixer:
        raise InputError("mixer.num_members is not a setting; the number of members is model.num_members.")
    settings = Settings(**_override(values, inherit_settings(dict(flatten(values)))))
    if any(callable(kind) for kind in settings.mixer.kinds):
        raise InputError(
            "mixer.kind is a function, which config.yaml cannot store; name it as package.module:function, and list "
            "its module in allow_imports."
        )
    if settings.trainer.max_epochs is None:
        raise InputError("trainer.max_epochs is not set; set it to the number of epochs, 1 or more.")
    text = yaml_text(values_of(settings))  # before open settings are resolved
    return Plan(settings, text, _resolve(settings))


def flatten(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a recipe by dotted name; mappings that are values are not flattened.

    Example:
        >>> list(flatten({"data": {"flip": True}, "model": {"options": {"a": 1}}}))
        [('data.flip', True), ('model.options', {'a': 1})]
    """
    for key, value in recipe.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in known_settings():
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def _override(recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with values set by dotted name; options of other libraries can be set one by one."""
    sections = {name.partition(".")[0] for name in known_settings() if "." in name}
    result = {str(name): copy.deepcopy(value) for name, value in recipe.items()}
    for name in sections & result.keys():
        if isinstance(result[name], Mapping | None):  # an empty section of YAML is None
            result[name] = {str(key): value for key, value in (result[name] or {}).items()}
    for name, value in values.items():
        owner = owner_of(name, known_settings()) or name
        path = [*owner.split("."), *filter(None, [name.removeprefix(owner).removeprefix(".")])]
        target: Any = result
        for part in path[:-1]:
            target = target.setdefault(part, {}) if isinstance(target, dict) else None
        if isinstance(target, dict):  # anything else is refused later
            target[path[-1]] = value
    return result


def _resolve(settings: Settings) -> dict[str, dict[str, Any]]:
    """Resolve open settings in place; return their values."""
    trainer = settings.trainer
    device = training_device(trainer.accelerator)
    if trainer.precision is None:
        trainer.precision = default_precision(device)
    if settings.model.compile is None:
        settings.model.compile = default_compile(device)
    if settings.data.eval_batch_size is None:
        # Without gradients, four training batches fit into a GPU's memory. Larger batches are slower on a CPU, because
        # they exceed its caches (docs/performance.md).
        settings.data.eval_batch_size = settings.data.batch_size * (4 if device.type == "cuda" else 1)
    return {
        "trainer": {"precision": trainer.precision},
        "model": {"compile": settings.model.compile},
        "data": {"eval_batch_size": settings.data.eval_batch_size},
    }
