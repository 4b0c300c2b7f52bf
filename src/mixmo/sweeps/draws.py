"""Random values of settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixmo.errors import InputError
from mixmo.validation import Number, check_value


def draw(spec: Any, hint: Any, generator: np.random.Generator, name: str) -> Any:
    """Return a random value, with four significant digits where it is no integer.

    Args:
        spec: A list to choose from, or a mapping with ``low``, ``high`` and, by default false, ``log``.
        hint: The setting's annotation; where it is no ``float`` and both ends are integers, an integer is drawn, the
            ends included.
        generator: Draws it.
        name: What is drawn, for the error.

    Raises:
        InputError: for anything else.

    Example:
        >>> draw({"low": 1e-4, "high": 0.1, "log": True}, float, np.random.default_rng(0), "optimizer.lr")
        0.008145
    """
    if isinstance(spec, list) and spec:
        return spec[int(generator.integers(len(spec)))]
    if not isinstance(spec, Mapping) or not {"low", "high"} <= set(spec) <= {"low", "high", "log"}:
        raise InputError(
            f"{name} is {spec!r}; it is a list of values, or {{low: …, high: …}} with or without log: true."
        )
    low, high = (check_value(spec[end], Number, f"{name}.{end}") for end in ("low", "high"))
    logarithmic = check_value(spec.get("log", False), bool, f"{name}.log")
    if not -math.inf < low < high < math.inf or (logarithmic and low <= 0):
        raise InputError(f"{name} goes from {low:g} to {high:g}; low is less than high{', and above 0' * logarithmic}.")
    whole = "float" not in str(hint) and all(isinstance(spec[end], int) for end in ("low", "high"))
    if logarithmic:
        value = math.exp(generator.uniform(math.log(low), math.log(high + whole)))
    else:
        value = generator.uniform(low, high + whole)
    value = min(max(math.floor(value) if whole else float(f"{value:.4g}"), low), high)
    return int(value) if whole else value
