"""Import of user code that a recipe names, where the user allows it.

Importing a module runs it. So a name such as ``mypackage.masks:stripes`` is followed only where ``allow_imports`` lists
the module, in a recipe that the user runs or on the command line; what a run's folder says never counts as permission.
The same holds for downloads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mixmo.errors import InputError, reason

PERMISSION = "allow_imports"
"""The setting that lists the modules which may be imported."""

PERMISSIONS = (PERMISSION, "data.download", "model.download")
"""Settings that allow something to be run or fetched: they count in a user's recipe and on the command line only."""


def resolve(name: str, allowed: Sequence[str]) -> Any:
    """Return the function that an import path names.

    Args:
        name: ``package.module:function``.
        allowed: The modules that may be imported, by their full names; a package allows none of its modules.

    Raises:
        InputError: if the name is malformed, its module is not allowed or cannot be imported, or holds no such
            function. A module that is not allowed is not imported.

    Example:
        >>> resolve("math:hypot", ["math"])(3, 4)
        5.0
        >>> resolve("math:hypot", [])
        Traceback (most recent call last):
        mixmo.errors.InputError: 'math:hypot' needs code of the module math, ...
    """
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), attribute]):
        raise InputError(f"{name!r} is no import path; it has the form package.module:function.")
    if module not in allowed:
        raise InputError(
            f"{name!r} needs code of the module {module}, which is not allowed; if you trust it, allow it with "
            f"--{PERMISSION} '[{module}]'."
        )
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a user's module: show what it raises
        raise InputError(f"{name!r} cannot be imported: {reason(error)}.") from error
    if not callable(found):
        raise InputError(f"{name!r} is {type(found).__name__}; it is a function.")
    return found


def is_import_path(name: str) -> bool:
    """Return whether a name is an import path rather than one of mixmo's own names.

    Example:
        >>> is_import_path("mypackage.masks:stripes"), is_import_path("cut")
        (True, False)
    """
    return ":" in name


def without_permission(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration without imports and downloads that it allows: another user may have trained it.

    Example:
        >>> without_permission({"seed": 1, "allow_imports": ["mypackage.masks"], "data": {"download": True}})
        {'seed': 1, 'data': {}}
    """

    def kept(section: Any, prefix: str) -> Any:
        if not isinstance(section, Mapping):
            return section
        return {key: kept(value, f"{key}.") for key, value in section.items() if f"{prefix}{key}" not in PERMISSIONS}

    return dict(kept(configuration, ""))


def is_kept_configuration(file: Path) -> bool:
    """Return whether a YAML file is a run's configuration, by its name or the files next to it.

    Example:
        >>> is_kept_configuration(Path("runs/cut/config.yaml")), is_kept_configuration(Path("recipe.yaml"))
        (True, False)
    """
    in_run = any((file.resolve().parent / name).exists() for name in ("environment.json", "checkpoints"))
    return file.name.lower() in ("config.yaml", "config.yml") or in_run
