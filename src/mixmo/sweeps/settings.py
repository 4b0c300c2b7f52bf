"""The section of a sweep's file that says what to vary, and when to stop early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mixmo.config.checking import checked, hints
from mixmo.config.recipes import SWEEP
from mixmo.errors import InputError, one_of


@dataclass
class Asha:
    """When trials are stopped early, by the accuracy on validation data: asynchronous successive halving (ASHA).

    A trial is looked at after g, g·r, g·r² … epochs, and stopped where it is not among the best 1/r of those that came
    as far before it (Li et al. 2020, arXiv 1810.05934).

    Attributes:
        grace_epochs: g.
        reduction: r.
    """

    grace_epochs: int = 1
    reduction: float = 3.0


@dataclass
class SweepSettings:
    """The section ``sweep`` of a sweep's file.

    Attributes:
        grid: By a setting's dotted name a list of values; or, by any other name, named choices of several settings at
            a time, each as a recipe has them (``extends`` included). Every combination is tried.
        random: By a setting's dotted name a list to choose from, or ``{low, high}`` to draw between, evenly or with
            ``log: true`` evenly in the logarithm.
        samples: How many random draws, for each point of the grid.
        draw_seed: Of the draws: sample i is a function of it and i.
        seeds: Of every configuration; the recipe's own by default. All see the same split of the images, which the
            recipe's own seed draws unless ``data.split_seed`` is set.
        asha: When to stop trials early; never by default.
    """

    grid: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)
    samples: int = 10
    draw_seed: int = 0
    seeds: list[int] | None = None
    asha: dict[str, Any] | None = None


def read_settings(section: Mapping[str, Any]) -> SweepSettings:
    """Return the section ``sweep`` of a file, checked by itself.

    Args:
        section: As YAML has it.

    Raises:
        InputError: for a name or a value that is not understood.

    Example:
        >>> read_settings({"grid": {"mixer.alpha": [1, 2]}, "seeds": [0, 1]}).samples
        10
    """
    for name in ("grid", "random", "asha"):
        if not isinstance(section.get(name, {}), Mapping):
            raise InputError(f"sweep.{name} is {section[name]!r}; it is a mapping of names to values.")
    settings = SweepSettings(**_checked(section, SweepSettings, SWEEP))
    for name, least in (("samples", 1), ("draw_seed", 0)):
        if getattr(settings, name) < least:
            raise InputError(f"sweep.{name} is {getattr(settings, name)}; it is {least} or more.")
    if settings.seeds is not None and (not settings.seeds or len(set(settings.seeds)) < len(settings.seeds)):
        raise InputError(f"sweep.seeds is {settings.seeds}; it lists seeds, each once.")
    if not (settings.grid or settings.random or settings.seeds):
        raise InputError("sweep names no grid, no random settings and no seeds: there is nothing to vary.")
    return settings


def read_asha(values: Mapping[str, Any]) -> Asha:
    """Return the part ``asha`` of that section, checked by itself.

    Args:
        values: As YAML has it.

    Raises:
        InputError: for a name or a value that is not understood.

    Example:
        >>> read_asha({"reduction": 4})
        Asha(grace_epochs=1, reduction=4.0)
    """
    asha = Asha(**_checked(values, Asha, f"{SWEEP}.asha"))
    if asha.grace_epochs < 1 or not 2 <= asha.reduction < 1000:
        raise InputError(
            f"sweep.asha has grace_epochs {asha.grace_epochs} and reduction {asha.reduction:g}; they are 1 or more, "
            "and 2 or more."
        )
    return asha


def _checked(values: Mapping[str, Any], section: type, name: str) -> dict[str, Any]:
    """Return values by a dataclass's names and annotations."""
    known = hints(section)
    return {
        key: checked(value, known[one_of(key, known, f"setting of {name}")], f"{name}.{key}")
        for key, value in values.items()
    }
