"""The settings in a run's folder, of this version or of another: sections, what is open in them, what is unknown."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import yaml

from mixmo.config.plan import make_plan


def section_of(about: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a section of a file, empty where it is missing or of another kind.

    Example:
        >>> section_of({"data": [1]}, "data")
        {}
    """
    return found if isinstance(found := about.get(key), Mapping) else {}


def filled(config: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return sections of settings, those left open as they are resolved elsewhere.

    Example:
        >>> filled({"trainer": {"precision": None}}, {"trainer": {"precision": "32-true"}})
        {'trainer': {'precision': '32-true'}}
    """
    found = dict(config)
    for section, values in resolved.items():
        own = found.get(section) or {}
        found[section] = own | {key: value for key, value in values.items() if own.get(key) is None}
    return found


def without_unknown(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return settings without those of training that this version does not know, and the names of these.

    Settings of ``data`` stay: images that are taken or drawn otherwise are other images.

    Example:
        >>> without_unknown({"seed": 1, "optimizer": {"lr": 0.1, "warp": 9}, "data": {"fold": 2}})
        ({'seed': 1, 'optimizer': {'lr': 0.1}, 'data': {'fold': 2}}, ['optimizer.warp'])
    """
    known, kept, unknown = _known(), dict[str, Any](), list[str]()
    for section, values in config.items():
        if section not in known:
            unknown.append(section)
        elif section != "data" and isinstance(values, Mapping) and isinstance(known[section], Mapping):
            kept[section] = {key: value for key, value in values.items() if key in known[section]}
            unknown += [f"{section}.{key}" for key in values if key not in known[section]]
        else:
            kept[section] = values
    return kept, unknown


@functools.cache
def _known() -> dict[str, Any]:
    """Return every setting that this version knows, by section."""
    known: dict[str, Any] = yaml.safe_load(make_plan({"trainer": {"max_epochs": 1}}).yaml)
    return known
