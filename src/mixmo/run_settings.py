"""Settings in a run's folder, also of other versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixmo.config.settings import known_settings


def get_section(about: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a section of a file, empty where it is missing or of another kind.

    Example:
        >>> get_section({"data": [1]}, "data")
        {}
    """
    return found if isinstance(found := about.get(key), Mapping) else {}


def fill_open_settings(config: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return sections of settings, those left open as they are resolved elsewhere.

    Example:
        >>> fill_open_settings({"trainer": {"precision": None}}, {"trainer": {"precision": "32-true"}})
        {'trainer': {'precision': '32-true'}}
    """
    found = dict(config)
    for section, values in resolved.items():
        own = get_section(found, section)
        found[section] = dict(own) | {key: value for key, value in values.items() if own.get(key) is None}
    return found


def drop_unknown(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return settings without those of training that this version does not know, and the names of these.

    Settings of ``data`` stay: images that are taken or drawn otherwise are other images.

    Example:
        >>> drop_unknown({"seed": 1, "optimizer": {"lr": 0.1, "warp": 9}, "data": {"fold": 2}})
        ({'seed': 1, 'optimizer': {'lr': 0.1}, 'data': {'fold': 2}}, ['optimizer.warp'])
    """
    known, kept, unknown = known_settings(), dict[str, Any](), list[str]()
    sections = {name.partition(".")[0] for name in known}
    for section, values in config.items():
        if section not in sections:
            unknown.append(section)
        elif section != "data" and section not in known and isinstance(values, Mapping):
            kept[section] = {key: value for key, value in values.items() if f"{section}.{key}" in known}
            unknown += [f"{section}.{key}" for key in values if key not in kept[section]]
        else:
            kept[section] = values
    return kept, unknown
