"""The section of a sweep's file that says what to vary, and when to stop early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import Field

from mixmo.errors import InputError
from mixmo.validation import Count, Integer, Number, settings_class


@settings_class("sweep.asha")
class Asha:
    """When trials are stopped early, by the accuracy on validation data: asynchronous successive halving (ASHA).

    A trial is looked at after g, g·r, g·r² … epochs, and stopped where it is not among the best 1/r of those that came
    as far before it (Li et al. 2020, arXiv 1810.05934).
    """

    grace_epochs: Count = 1
    """g."""
    reduction: Annotated[Number, Field(ge=2, lt=1000)] = 3.0
    """r."""


@settings_class("sweep")
class SweepSettings:
    """The section ``sweep`` of a sweep's file."""

    grid: dict[str, Any] = field(default_factory=dict)
    """By a setting's dotted name a list of values; or, by any other name, named choices of several settings at a
    time, each as a recipe has them (``extends`` included). Every combination is tried.
    """
    random: dict[str, Any] = field(default_factory=dict)
    """By a setting's dotted name a list to choose from, or ``{low, high}`` to draw between, evenly or with ``log:
    true`` evenly in the logarithm.
    """
    samples: Count = 10
    """How many random draws, for each point of the grid."""
    draw_seed: Annotated[Integer, Field(ge=0)] = 0
    """Of the draws: sample i is a function of it and i."""
    seeds: list[Annotated[Integer, Field(ge=0)]] | None = None
    """Of every configuration; the recipe's own by default. All see the same split of the images, which the recipe's
    own seed draws unless ``data.split_seed`` is set.
    """
    asha: Asha | None = None
    """When to stop trials early; never by default."""


def read_settings(section: Mapping[str, Any]) -> SweepSettings:
    """Return the section ``sweep`` of a file, checked by itself."""
    settings = SweepSettings(**{str(name): value for name, value in section.items()})
    if settings.seeds is not None and (not settings.seeds or len(set(settings.seeds)) < len(settings.seeds)):
        raise InputError(f"sweep.seeds is {settings.seeds}; it lists seeds, each once.")
    if not (settings.grid or settings.random or settings.seeds):
        raise InputError("sweep names no grid, no random settings and no seeds: there is nothing to vary.")
    return settings
