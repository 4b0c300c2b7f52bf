"""Recipes: those shipped, files, and how they extend each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from mixmo.errors import InputError, one_of
from mixmo.files import read_yaml

Recipe = dict[str, Any]
NOTES = ("published", "source")
"""Keys of a catalogue entry that are not settings."""
GROUPS = {
    "quickstart": "Start here, a minute on a CPU: 20 digits of each class",
    "digits-": "Half a minute on a CPU, all digits",
    "finetune-": "Photos of your own, from pretrained weights",
    "cifar100-mini-": "CIFAR-100 in minutes on a CPU",
    "cifar100-fast-": "CIFAR-100 in minutes on a large GPU (not run yet)",
    "cifar100-wrn": "CIFAR-100, as published",
    "cifar10-wrn": "CIFAR-10, as published",
    "tiny-": "Tiny-ImageNet, as published",
}
"""Titles of groups of recipes by the prefix of their names, in the order they are listed."""
SWEEP = "sweep"
"""The section of a sweep's file (:mod:`mixmo.sweeps`) that is not part of its recipe."""
PERMISSIONS = ("allow_imports", "data.download", "model.download")
"""Settings that allow imports or downloads; only a user's recipe and the command line can set them."""


@cache
def _read_shipped(name: str) -> dict[str, Recipe]:
    content: dict[str, Recipe] = yaml.safe_load(files("mixmo.config.recipes").joinpath(name).read_text("utf-8"))
    return content


def catalogue() -> dict[str, Recipe]:
    """Return every shipped recipe by name, resolved, with ``published`` (top-1 in %) and ``source``."""
    return {
        name: resolve(entry, "catalogue.yaml") | {note: entry[note] for note in NOTES if note in entry}
        for name, entry in _read_shipped("catalogue.yaml").items()
    }


def group_recipes() -> dict[str, dict[str, Recipe]]:
    """Return the catalogue in groups by title."""
    recipes = catalogue()
    return {
        title: {name: recipe for name, recipe in recipes.items() if name.startswith(prefix)}
        for prefix, title in GROUPS.items()
    }


def load_recipe(recipe: str | Path) -> Recipe:
    """Return the settings of a shipped recipe or a YAML file, with everything that it extends.

    A file can extend shipped recipes or bases: ``extends: [cifar100-wrn28x10-cut]``. Permissions in a run's
    ``config.yaml`` are dropped.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        content = read_yaml(path, "recipe file")
        if SWEEP in content:
            raise InputError(f"{path} is a sweep; train it with `mixmo sweep {path}`.")
        return resolve(without_permission(content) if _is_configuration(path) else content, str(path))
    one_of(str(recipe), _read_shipped("catalogue.yaml"), "recipe")
    return resolve(_read_shipped("catalogue.yaml")[str(recipe)], "catalogue.yaml")


def without_permission(configuration: Mapping[str, Any], section: str = "") -> Recipe:
    """Drop permissions to import and download from a run's configuration, which another user may have written.

    Example:
        >>> without_permission({"seed": 1, "allow_imports": ["mypackage.masks"], "data": {"download": True}})
        {'seed': 1, 'data': {}}
    """
    return {
        key: without_permission(value, f"{key}.") if isinstance(value, Mapping) else value
        for key, value in configuration.items()
        if f"{section}{key}" not in PERMISSIONS
    }


def _is_configuration(file: Path) -> bool:
    """Return whether a YAML file is a run's configuration, judging by its name and neighbours."""
    in_run = any((file.resolve().parent / name).exists() for name in ("environment.json", "checkpoints"))
    return file.name.lower() in ("config.yaml", "config.yml") or in_run


def resolve(content: Recipe, where: str) -> Recipe:
    """Merge settings onto everything that they extend, in order (``extends``: a name or a list of names).

    Example:
        >>> resolve({"extends": "digits-cut", "seed": 3}, "here")["data"]["name"]
        'digits'
    """
    known = _read_shipped("bases.yaml") | _read_shipped("catalogue.yaml")
    resolved: Recipe = {}
    for name in _parents(content):
        if not isinstance(name, str):
            raise InputError(f"extends in {where} has {name!r}; it must name recipes or bases.")
        if name.endswith((".yaml", ".yml")):
            raise InputError(f"extends in {where} has the file {name}, but must name recipes or bases; copy its lines.")
        one_of(name, known, f"base in {where}")
        resolved = merge(resolved, resolve(known[name], where))
    own = {key: value for key, value in content.items() if key not in ("extends", *NOTES)}
    return merge(resolved, nest(own, where))


def _parents(content: Recipe) -> list[Any]:
    parents = content.get("extends") or []
    return parents if isinstance(parents, list) else [parents]


def combine_bases(parts: Sequence[Recipe], where: str) -> Recipe:
    """Merge parts of a recipe: everything that any of them extends first, then their settings in order.

    Example:
        >>> combine_bases([{"seed": 1, "extends": "digits-cut"}, {"seed": 2}], "here")["seed"]
        2
    """
    extends, settings = list[Any](), Recipe()
    for part in parts:
        extends += _parents(part)
        settings = merge(settings, nest({key: value for key, value in part.items() if key != "extends"}, where))
    return resolve({"extends": extends, **settings}, where)


def nest(settings: Mapping[str, Any], where: str) -> Recipe:
    """Return settings with dotted names as sections.

    Example:
        >>> nest({"data": {"flip": True}, "data.padding": 4, "mixer.alpha": 3}, "here")
        {'data': {'flip': True, 'padding': 4}, 'mixer': {'alpha': 3}}
    """
    nested: Recipe = {key: value for key, value in settings.items() if not _is_dotted(key)}
    for name in filter(_is_dotted, settings):
        *sections, last = name.split(".")
        target = nested
        for section in sections:
            inner = target.get(section) or {}  # an empty section of YAML is None
            target[section] = dict(inner) if isinstance(inner, Mapping) else {last: inner}
            target = target[section]
        if last in target:
            raise InputError(f"{where} sets {name} both by this name and in its section; remove one of them.")
        target[last] = settings[name]
    return nested


def _is_dotted(name: Any) -> bool:
    """Return whether a key names a setting with its sections."""
    return isinstance(name, str) and "." in name and all(name.split("."))


def merge(below: Recipe, above: Recipe) -> Recipe:
    """Return ``below`` with the values of ``above``, section by section.

    Example:
        >>> merge({"data": {"a": 1, "b": 2}}, {"data": {"b": 3}})
        {'data': {'a': 1, 'b': 3}}
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def method_name(settings: Mapping[str, Any]) -> str:
    """Return the name of the method that (possibly incomplete) settings train.

    Example:
        >>> method_name(load_recipe("cifar10-wrn28x10-linear-cutmix"))
        'Linear-MixMo + CutMix'
        >>> method_name({"model": {"num_members": 1}}), method_name({"mixer": {"kind": {"cut": 0.5, "cow": 0.5}}})
        ('single network', 'Cut/Cow-MixMo')
    """
    kind = settings.get("mixer", {}).get("kind", "cut")
    pixels = settings.get("pixels", {}).get("kind", "none")
    kinds = "/".join(f"{name[:1].upper()}{name[1:]}" for name in ([kind] if isinstance(kind, str) else kind))
    ensemble = "MIMO" if kind == "mimo" else f"{kinds}-MixMo"
    method = "single network" if settings.get("model", {}).get("num_members", 2) == 1 else ensemble
    return method if pixels == "none" else f"{method} + {'CutMix' if pixels == 'cutmix' else pixels}"
