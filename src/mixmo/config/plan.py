"""From a recipe and overrides to the checked settings of a run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mixmo.config.hardware import default_compile, default_precision, training_device
from mixmo.config.parsing import owner_of, read_words
from mixmo.config.preprocessing import inherit_settings
from mixmo.config.recipes import Recipe
from mixmo.config.settings import Settings, known_settings, values_of
from mixmo.errors import InputError
from mixmo.files import yaml_text


class Plan(NamedTuple):
    """A run as requested.

    Attributes:
        settings: The run's settings; what they leave open follows from this machine.
        yaml: The settings as YAML, for the run's folder, still open where they were left open.
        resolved: What followed from this machine, in sections.
    """

    settings: Settings
    yaml: str
    resolved: dict[str, dict[str, Any]]

    @property
    def epochs(self) -> int:
        """Epochs of the training."""
        return self.settings.trainer.max_epochs or 0


def make_plan(recipe: Recipe, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Plan:
    """Return the plan of a recipe and overrides; other values follow from the start and the device.

    Overrides are words of the command line, ``--name value``, or values by their dotted names. Every unknown setting,
    with near matches, and every value of the wrong type or range is named.

    Example:
        >>> from mixmo.config.recipes import load_recipe
        >>> plan = make_plan(load_recipe("digits-cut"), ["--data.batch_size=16"])
        >>> plan.settings.data.batch_size, plan.epochs
        (16, 20)
    """
    if not isinstance(overrides, Mapping):
        alone, overrides = read_words(overrides, known_settings(), "fit")
        if alone:
            raise InputError(f"{alone[0]!r} is not understood; settings are --name=value.")
    values = _override(recipe, overrides)
    if isinstance(own := values.get("mixer"), Mapping) and "num_members" in own:
        raise InputError("mixer.num_members is not a setting; the number of members is model.num_members.")
    settings = Settings(**_override(values, inherit_settings(dict(flatten(values)))))
    if any(callable(kind) for kind in settings.mixer.kinds):
        raise InputError(
            "mixer.kind is a function, which a run's configuration cannot hold; name it package.module:function, and "
            "its module in allow_imports."
        )
    if settings.trainer.max_epochs is None:
        raise InputError("trainer.max_epochs is not set; it says how many epochs to train, 1 or more.")
    text = yaml_text(values_of(settings))  # before what is left open is filled in
    return Plan(settings, text, _resolve(settings))


def flatten(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a recipe by their dotted names; all below a setting's name is its value.

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
    """Return a recipe with values set by their dotted names; single options of another library are added."""
    sections = {name.partition(".")[0] for name in known_settings() if "." in name}
    found = {str(name): copy.deepcopy(value) for name, value in recipe.items()}
    dotted = {name: found.pop(name) for name in list(found) if "." in name and owner_of(name, known_settings())}
    for name in sections & found.keys():
        if isinstance(found[name], Mapping | None):  # an empty section of YAML is None
            found[name] = {str(key): value for key, value in (found[name] or {}).items()}
    for name, value in {**dotted, **values}.items():
        owner = owner_of(name, known_settings()) or name
        path = [*owner.split("."), *filter(None, [name.removeprefix(owner).removeprefix(".")])]
        place: Any = found
        for part in path[:-1]:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):  # anything else is refused later
            place[path[-1]] = value
    return found


def _resolve(settings: Settings) -> dict[str, dict[str, Any]]:
    """Fill in what the settings leave open, and return it."""
    trainer = settings.trainer
    device = training_device(trainer.accelerator)
    if trainer.precision is None:
        trainer.precision = default_precision(device)
    if settings.model.compile is None:
        settings.model.compile = default_compile(device)
    if settings.data.eval_batch_size is None:
        # Without gradients a GPU has room for four training batches. A CPU is slower with larger ones: they leave its
        # caches (docs/performance.md).
        settings.data.eval_batch_size = settings.data.batch_size * (4 if device.type == "cuda" else 1)
    return {
        "trainer": {"precision": trainer.precision},
        "model": {"compile": settings.model.compile},
        "data": {"eval_batch_size": settings.data.eval_batch_size},
    }
