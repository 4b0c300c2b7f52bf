"""Shipped recipes: a few bases, and the lines in which each recipe differs."""

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
"""Keys of a catalogue entry that describe it; they are not settings."""
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
"""The purpose of recipes with the same beginning of their names, in the order of the list."""
SWEEP = "sweep"
"""The section of a file that says what to vary (:mod:`mixmo.sweeps`); the rest of it is a recipe."""
PERMISSIONS = ("allow_imports", "data.download", "model.download")
"""Settings that allow code to run or downloads: they count in a user's recipe and on the command line only."""


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


def in_groups() -> dict[str, dict[str, Recipe]]:
    """Return the catalogue in groups, each by what it is for."""
    recipes = catalogue()
    return {
        title: {name: recipe for name, recipe in recipes.items() if name.startswith(prefix)}
        for prefix, title in GROUPS.items()
    }


def load_recipe(recipe: str | Path) -> Recipe:
    """Return the settings of a shipped recipe or a YAML file, with everything it extends filled in.

    A file may start from shipped recipes or bases: ``extends: [cifar100-wrn28x10-cut]``. Imports that a run's
    configuration lists are left out: allowing them is for the command line.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        content = read_yaml(path, "recipe file")
        if SWEEP in content:
            raise InputError(f"{path} is a sweep, of many runs: `mixmo sweep {path}` trains them.")
        return resolve(without_permission(content) if _is_configuration(path) else content, str(path))
    one_of(str(recipe), _read_shipped("catalogue.yaml"), "recipe")
    return resolve(_read_shipped("catalogue.yaml")[str(recipe)], "catalogue.yaml")


def without_permission(configuration: Mapping[str, Any], section: str = "") -> Recipe:
    """Return a run's configuration without imports and downloads that it allows: another user may have trained it.

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
    """Return whether a YAML file is a run's configuration, by its name or the files next to it."""
    in_run = any((file.resolve().parent / name).exists() for name in ("environment.json", "checkpoints"))
    return file.name.lower() in ("config.yaml", "config.yml") or in_run


def resolve(content: Recipe, where: str) -> Recipe:
    """Return settings on top of everything they extend (``extends``: a name or a list of names), in order.

    Example:
        >>> resolve({"extends": "digits-cut", "seed": 3}, "here")["data"]["name"]
        'digits'
    """
    known = _read_shipped("bases.yaml") | _read_shipped("catalogue.yaml")
    resolved: Recipe = {}
    for name in _parents(content):
        if not isinstance(name, str):
            raise InputError(f"extends in {where} holds {name!r}; it names recipes or bases.")
        if name.endswith((".yaml", ".yml")):
            raise InputError(f"extends in {where} holds the file {name}; it names recipes or bases: copy its lines.")
        one_of(name, known, f"base in {where}")
        resolved = merge(resolved, resolve(known[name], where))
    return merge(resolved, {key: value for key, value in content.items() if key not in ("extends", *NOTES)})


def _parents(content: Recipe) -> list[Any]:
    parents = content.get("extends") or []
    return parents if isinstance(parents, list) else [parents]


def combine_bases(parts: Sequence[Recipe], where: str) -> Recipe:
    """Return what several parts of a recipe set: all that they extend first, then their own settings, the last on top.

    Example:
        >>> combine_bases([{"seed": 1, "extends": "digits-cut"}, {"seed": 2}], "here")["seed"]
        2
    """
    extends, own = list[Any](), Recipe()
    for part in parts:
        extends += _parents(part)
        own = merge(own, {key: value for key, value in part.items() if key != "extends"})
    return resolve({"extends": extends, **own}, where)


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
    """Return the usual name of the method that a recipe or a run's configuration, complete or not, trains.

    Example:
        >>> method_name(load_recipe("cifar10-wrn28x10-linear-cutmix"))
        'Linear-MixMo + CutMix'
        >>> method_name({"model": {"num_members": 1}}), method_name({"mixer": {"kind": {"cut": 0.5, "cow": 0.5}}})
        ('single network', 'Cut/Cow-MixMo')
    """
    kind = settings.get("mixer", {}).get("kind", "cut")
    pixels = settings.get("pixels", {}).get("kind", "none")
    kinds = "/".join(f"{each[:1].upper()}{each[1:]}" for each in ([kind] if isinstance(kind, str) else kind))
    several = "MIMO" if kind == "mimo" else f"{kinds}-MixMo"
    method = "single network" if settings.get("model", {}).get("num_members", 2) == 1 else several
    return method if pixels == "none" else f"{method} + {'CutMix' if pixels == 'cutmix' else pixels}"
