"""From the YAML file of a sweep to its trials: combinations of a grid, random draws and seeds, all of them checked."""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixmo.config.plan import Plan, make_plan
from mixmo.config.recipes import SWEEP, Recipe, combined, merge
from mixmo.config.settings import known_settings
from mixmo.errors import InputError, one_of
from mixmo.files import read_yaml
from mixmo.sweeps.draws import draw
from mixmo.sweeps.settings import Asha, SweepSettings, read_settings

LONGEST_NAME = 120
"""Of a configuration, in characters; a longer one ends with a digest of the whole."""
MOST = 10_000
"""Configurations of a sweep."""
RESERVED = ("comparison", "trials.csv")
"""What else is in a sweep's folder."""

log = logging.getLogger("mixmo")


class Choice(NamedTuple):
    """One value of one axis.

    Attributes:
        axis: The axis.
        label: What the value is called.
        settings: What it sets, as a recipe has it.
    """

    axis: str
    label: str
    settings: Recipe


@dataclass(frozen=True)
class Trial:
    """A run of a sweep.

    Attributes:
        name: Of its configuration: what trials that differ by their seed share.
        seed: Its seed.
        choices: The label of its value on every axis.
        recipe: Its settings but for those of the command line.
        overrides: Those of the command line, the seed among them.
        plan: What follows from both on this machine.
    """

    name: str
    seed: int
    choices: dict[str, str]
    recipe: Recipe
    overrides: dict[str, Any]
    plan: Plan

    @property
    def key(self) -> str:
        """The trial's folder within the sweep's."""
        return f"{self.name}/seed-{self.seed}"

    @property
    def epochs(self) -> int:
        """The epochs of the whole training."""
        return int(self.plan.trainer["max_epochs"])


@dataclass(frozen=True)
class Sweep:
    """What a file asks for.

    Attributes:
        trials: All of them, the first seed of every configuration first.
        asha: When to stop trials early, if ever.
        random: Whether any setting is drawn, so that the best are looked for rather than all compared.
    """

    trials: list[Trial]
    asha: Asha | None
    random: bool

    @property
    def names(self) -> list[str]:
        """The configurations, in the order of the file."""
        return list(dict.fromkeys(trial.name for trial in self.trials))

    @property
    def race(self) -> list[Trial]:
        """The trials among which some are stopped early: those of the first seed, or none."""
        return self.trials[: len(self.names)] if self.asha else []

    @property
    def rest(self) -> list[Trial]:
        """The others, which are trained to their end."""
        return self.trials[len(self.race) :]


def load_sweep(file: Path, overrides: Mapping[str, Any] | None = None) -> Sweep:
    r"""Return the trials of a sweep's file, every one of them checked.

    Args:
        file: A recipe with a section ``sweep`` (:class:`SweepSettings`).
        overrides: Values of every trial, by their dotted names.

    Raises:
        MissingError: if there is no such file.
        InputError: for anything that is not understood, naming it and the trial; or if two trials are the same.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> text = "extends: digits-cut\nsweep: {grid: {mixer.alpha: [1, 2]}, seeds: [0, 1]}"
        >>> with TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "alpha.yaml").write_text(text)
        ...     [trial.key for trial in load_sweep(Path(folder) / "alpha.yaml").trials]
        ['alpha-1/seed-0', 'alpha-2/seed-0', 'alpha-1/seed-1', 'alpha-2/seed-1']
    """
    content = read_yaml(file, "sweep file")
    section = content.pop(SWEEP, None)
    if not isinstance(section, Mapping) or not section:
        raise InputError(f"{file} has no section `{SWEEP}`, which says what to vary; docs/sweeps.md shows one.")
    settings = read_settings(section)
    if "seed" in (overrides or {}):
        raise InputError(f"--seed is not for a sweep; it takes sweep.seeds from {file}.")
    trials = list(_trials(content, settings, dict(overrides or {}), file))
    _check_distinct(trials)
    _check_comparable(settings, settings.asha, trials)
    return Sweep(trials, settings.asha, bool(settings.random))


def _trials(base: Recipe, settings: SweepSettings, overrides: dict[str, Any], file: Path) -> Iterator[Trial]:
    configurations = _configurations(settings, file.stem)
    for seed in settings.seeds or (None,):
        own = overrides if seed is None else {**overrides, "seed": seed}
        for name, choices in configurations:
            try:
                recipe = combined([base, *(choice.settings for choice in choices)], str(file))
                split = {"data": {"split_seed": recipe.get("seed", 0)}}  # the same for all seeds, whichever are added
                recipe = merge(split, recipe)
                plan = make_plan(recipe, own)
                _check_alone(plan)
            except InputError as error:
                raise InputError(f"trial {name}: {error}") from error
            yield Trial(name, plan.settings.seed, {c.axis: c.label for c in choices}, recipe, own, plan)


def _configurations(settings: SweepSettings, stem: str) -> list[tuple[str, list[Choice]]]:
    """Return the name and the choices of each configuration; draws that come again are left out."""
    if both := settings.grid.keys() & settings.random.keys():
        raise InputError(f"{min(both)} stands in both sweep.grid and sweep.random; leave it out of one.")
    axes = [_axis(axis, values) for axis, values in settings.grid.items()]
    hint_of = {name: _hint(name, "sweep.random") for name in settings.random}
    if (count := math.prod(map(len, axes)) * (settings.samples if settings.random else 1)) > MOST:
        raise InputError(
            f"the sweep asks for {count} configurations; {MOST} are the most: name fewer values, or fewer samples."
        )
    short = _short_names([*settings.grid, *settings.random])
    drawn = [_drawn(settings, number, hint_of) for number in range(settings.samples if settings.random else 1)]
    distinct: dict[str, list[Choice]] = {}
    for choices in drawn:
        distinct.setdefault(_name(choices, short), choices)
    if len(distinct) < len(drawn):
        log.info("%d of %d random draws came twice, and count once", len(drawn) - len(distinct), len(drawn))
    configurations = [[*point, *choices] for point in itertools.product(*axes) for choices in distinct.values()]
    found = [(_name(choices, short) or stem, choices) for choices in configurations]
    for name, _ in found:
        if name in RESERVED:
            raise InputError(
                f"a choice of the sweep is named {name}, as a file in its folder is; give it another name."
            )
    return found


def _drawn(settings: SweepSettings, number: int, hint_of: Mapping[str, Any]) -> list[Choice]:
    """Return the i-th random draw."""
    generator = np.random.default_rng([settings.draw_seed, number])
    return [
        _choice(name, draw(spec, hint_of[name], generator, f"sweep.random.{name}"))
        for name, spec in settings.random.items()
    ]


def _axis(axis: str, values: Any) -> list[Choice]:
    """Return the values of an axis of the grid."""
    if not isinstance(values, list | Mapping) or not values:
        raise InputError(f"sweep.grid.{axis} is {values!r}; it lists values, or names choices of several settings.")
    if isinstance(values, list):
        _hint(axis, "sweep.grid")
        return [_choice(axis, value) for value in values]
    for label, own in values.items():
        if not isinstance(own, Mapping | None):
            raise InputError(
                f"sweep.grid.{axis}.{label} is {own!r}; it holds settings as a recipe does, or is a list for a setting."
            )
    return [Choice(axis, str(label), dict(own or {})) for label, own in values.items()]


def _hint(name: str, where: str) -> Any:
    """Return the annotation of a setting by its dotted name; whatever it is for an option of another library."""
    if name == "seed":
        raise InputError(f"{where} names seed; list seeds in sweep.seeds, whose runs are averaged in the comparison.")
    known = known_settings()
    section, options, _ = name.partition(".options.")
    return Any if options and f"{section}.options" in known else known[one_of(name, known, f"setting in {where}")]


def _choice(name: str, value: Any) -> Choice:
    settings = value
    for part in reversed(name.split(".")):
        settings = {part: settings}
    return Choice(name, _label(value), settings)


def _label(value: Any) -> str:
    """Return what a value is called, as YAML writes it."""
    if isinstance(value, Mapping):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, list):
        return "-".join(map(_label, value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _short_names(axes: Sequence[str]) -> dict[str, str]:
    """Return what axes are called in names: the last part where that tells them apart."""
    last = [axis.rpartition(".")[2] for axis in axes]
    return {axis: axis if last.count(part) > 1 else part for axis, part in zip(axes, last, strict=True)}


def _name(choices: Sequence[Choice], short: Mapping[str, str]) -> str:
    """Return a configuration's name, which is also that of its folder."""
    known = known_settings()
    parts = [c.label if c.axis not in known and "." not in c.axis else f"{short[c.axis]}-{c.label}" for c in choices]
    name = re.sub(r"[^\w.+-]+", "-", "_".join(parts)).strip(".")
    digest = hashlib.sha256(name.encode()).hexdigest()
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{digest[:8]}"


def _check_alone(plan: Plan) -> None:
    for name in ("devices", "num_nodes"):
        if plan.trainer[name] not in (None, 1):
            raise InputError(
                f"trainer.{name} is {plan.trainer[name]}, and each trial of a sweep takes one device; train on many "
                "with `mixmo fit`."
            )


def _check_distinct(trials: Sequence[Trial]) -> None:
    """Refuse two trials of one name, or of the same settings."""
    keys, plans = dict[str, Trial](), dict[str, Trial]()
    for trial in trials:
        if trial.key in keys:
            raise InputError(f"two trials are called {trial.key}: a value or a name is there twice.")
        if (same := plans.get(trial.plan.yaml)) is not None:
            raise InputError(
                f"two trials of the sweep are the same, {same.key} and {trial.key}: an override of the command line "
                "has taken the place of what differs, or nothing does."
            )
        keys[trial.key] = plans[trial.plan.yaml] = trial


def _check_comparable(settings: SweepSettings, asha: Asha | None, trials: Sequence[Trial]) -> None:
    """Refuse to look for the best without the same validation images, or to stop early what is not as long."""
    if not settings.random and asha is None:
        return
    what = "sweep.random" if settings.random else "sweep.asha"
    data = [trial.plan.settings.data for trial in trials]
    if not all(each.validation for each in data):
        raise InputError(
            f"{what} looks for the best settings, and the test set never chooses: hold images out for validation, by "
            "data.validation: 0.1 say."
        )
    for name in ("name", "validation", "split_seed"):
        if len({getattr(each, name) for each in data}) > 1:
            raise InputError(f"{what} compares accuracies on validation images, but data.{name} differs among trials.")
    lengths = sorted({trial.epochs for trial in trials})
    if asha is not None and len(lengths) > 1:
        raise InputError(
            f"sweep.asha compares trials after as many epochs, but theirs are {' and '.join(map(str, lengths))}: give "
            "all the same, or leave asha out."
        )
    if asha is not None and asha.grace_epochs >= lengths[0]:
        raise InputError(
            f"sweep.asha.grace_epochs is {asha.grace_epochs}, and trials have {lengths[0]} epochs: nothing would be "
            "stopped early; lower it."
        )
