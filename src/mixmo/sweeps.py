"""Sweeps: every combination of a grid with every seed and fold, trained and compared."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import logging
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from mixmo.config.plan import Plan, make_plan
from mixmo.config.recipes import SWEEP, Recipe, combine_bases, merge
from mixmo.config.settings import known_settings
from mixmo.errors import InputError, InUseError, StoppedError, extract_message, one_of, reason
from mixmo.escaping import csv_cell
from mixmo.evaluation.comparison import Networks
from mixmo.files import make_folder, read_yaml, write_text
from mixmo.library import train_plan
from mixmo.runs import RunFolder
from mixmo.training.resuming import check_unchanged
from mixmo.validation import Integer, settings_class

FILE = "trials.csv"
COLUMNS = ("trial", "seed", "status", "epochs", "val_score", "train_loss", "seconds", "error")
"""The columns of that file; those of the grid follow the first. The score is accuracy on validation images, or mAP."""
FOLD = "data.fold"
RESERVED = ("comparison", FILE)
"""Other names in a sweep's folder."""
MAX_NAME = 120
"""Characters of a configuration's name; a longer one is cut and ends with a digest of the whole."""
MAX_CONFIGURATIONS = 10_000

log = logging.getLogger("mixmo")


@settings_class("sweep")
class SweepSettings:
    """The section ``sweep`` of a sweep's file."""

    grid: dict[str, Any] = field(default_factory=dict)
    """A list of values under a setting's dotted name; or, under any other name, named choices of several settings,
    each as in a recipe (``extends`` included). Every combination is trained.
    """
    seeds: list[Annotated[Integer, Field(ge=0)]] | None = None
    """Seeds of every configuration; the recipe's own by default. All see the same split of the images, drawn by the
    recipe's own seed unless ``data.split_seed`` is set.
    """
    folds: Annotated[Integer, Field(ge=2)] | None = None
    """k: every configuration is trained k times, each fold of the images (``data.folds``) being the test set once."""


class Choice(NamedTuple):
    """One value of one axis of the grid: its name, and its settings as in a recipe."""

    axis: str
    label: str
    settings: Recipe


@dataclass(frozen=True)
class Trial:
    """A run of a sweep."""

    name: str
    """Its configuration's, shared by trials that differ only in seed or fold."""
    choices: dict[str, str]
    """The label of its value on every axis, and its fold."""
    recipe: Recipe
    """Its settings, except those of the command line."""
    overrides: dict[str, Any]
    """Those of the command line, the seed among them."""
    plan: Plan
    """What follows from both on this machine."""

    @property
    def key(self) -> str:
        """The trial's folder within the sweep's."""
        own = self.plan.settings
        return f"{self.name}/seed-{own.seed}{'' if own.data.folds is None else f'_fold-{own.data.fold}'}"


def load_sweep(file: Path, overrides: Mapping[str, Any] | None = None) -> list[Trial]:
    r"""Return the trials of a sweep's file, the first seed and fold of every configuration first; all are checked.

    ``overrides`` are settings of every trial, by their dotted names.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> text = "extends: digits-cut\nsweep: {grid: {mixer.alpha: [1, 2]}, seeds: [0, 1]}"
        >>> with TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "alpha.yaml").write_text(text)
        ...     [trial.key for trial in load_sweep(Path(folder) / "alpha.yaml")]
        ['alpha-1/seed-0', 'alpha-2/seed-0', 'alpha-1/seed-1', 'alpha-2/seed-1']
    """
    content = read_yaml(file, "sweep file")
    section = content.pop(SWEEP, None)
    if not isinstance(section, Mapping) or not section:
        raise InputError(f"{file} has no section `{SWEEP}`, which says what to vary; docs/sweeps.md shows one.")
    for name, place in (("seed", "seeds"), ("data.folds", "folds"), (FOLD, "folds")):
        if name in (overrides or {}):
            raise InputError(f"--{name} is not for a sweep; it takes sweep.{place} from {file}.")
    trials = list(_make_trials(content, _read_settings(section), dict(overrides or {}), file))
    _check_distinct(trials)
    _check_test_images(trials)
    return trials


def _read_settings(section: Mapping[str, Any]) -> SweepSettings:
    settings = SweepSettings(**{str(name): value for name, value in section.items()})
    if settings.seeds is not None and (not settings.seeds or len(set(settings.seeds)) < len(settings.seeds)):
        raise InputError(f"sweep.seeds is {settings.seeds}; it lists seeds, each once.")
    if not (settings.grid or settings.seeds or settings.folds):
        raise InputError("sweep names no grid, no seeds and no folds: there is nothing to vary.")
    return settings


def _make_trials(base: Recipe, settings: SweepSettings, overrides: dict[str, Any], file: Path) -> Iterator[Trial]:
    configurations = _combine(settings.grid, file.stem)
    for seed, fold in itertools.product(settings.seeds or (None,), range(settings.folds or 1)):
        own = overrides if seed is None else {**overrides, "seed": seed}
        own = {**own, "data.folds": settings.folds, FOLD: fold} if settings.folds else own
        for name, choices in configurations:
            try:
                recipe = combine_bases([base, *(choice.settings for choice in choices)], str(file))
                recipe = merge({"data": {"split_seed": recipe.get("seed", 0)}}, recipe)  # one split for all seeds
                plan = make_plan(recipe, own)
            except InputError as error:
                raise InputError(f"trial {name}: {error}") from error
            for setting in ("devices", "num_nodes"):
                if (count := getattr(plan.settings.trainer, setting)) not in (None, 1):
                    raise InputError(
                        f"trial {name}: trainer.{setting} is {count}, and each trial of a sweep takes one device; "
                        "train on many with `mixmo fit`."
                    )
            labels = {choice.axis: choice.label for choice in choices} | ({FOLD: str(fold)} if settings.folds else {})
            yield Trial(name, labels, recipe, own, plan)


def _combine(grid: Mapping[str, Any], stem: str) -> list[tuple[str, tuple[Choice, ...]]]:
    """Return the name and the choices of every configuration."""
    axes = [_read_axis(axis, values) for axis, values in grid.items()]
    if (count := math.prod(map(len, axes))) > MAX_CONFIGURATIONS:
        raise InputError(f"the sweep has {count} configurations, more than {MAX_CONFIGURATIONS}: name fewer values.")
    found = [(_name(choices) or stem, choices) for choices in itertools.product(*axes)]
    for name, _ in found:
        if name in RESERVED:
            raise InputError(f"a choice of the sweep is named {name}, as a file in its folder is; name it otherwise.")
    return found


def _read_axis(axis: str, values: Any) -> list[Choice]:
    """Return the values of an axis of the grid."""
    if not isinstance(values, list | Mapping) or not values:
        raise InputError(f"sweep.grid.{axis} is {values!r}; it lists values, or names choices of several settings.")
    if isinstance(values, list):
        _check_setting(axis)
        return [_set(axis, value) for value in values]
    for label, own in values.items():
        if not isinstance(own, Mapping | None):
            raise InputError(
                f"sweep.grid.{axis}.{label} is {own!r}; it holds settings as a recipe does, or is a list for a setting."
            )
    return [Choice(axis, str(label), dict(own or {})) for label, own in values.items()]


def _check_setting(name: str) -> None:
    """Refuse the dotted name of an unknown setting; options of other libraries are not checked."""
    if place := {"seed": "list seeds in sweep.seeds", FOLD: "set sweep.folds"}.get(name):
        raise InputError(f"sweep.grid names {name}; {place}, whose runs are averaged in the comparison.")
    known = known_settings()
    section, options, _ = name.partition(".options.")
    if not (options and f"{section}.options" in known):
        one_of(name, known, "setting in sweep.grid")


def _set(name: str, value: Any) -> Choice:
    settings = value
    for part in reversed(name.split(".")):
        settings = {part: settings}
    return Choice(name, _label(value), settings)


def _label(value: Any) -> str:
    """Return a value's name, as YAML writes it."""
    if isinstance(value, Mapping):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, list):
        return "-".join(map(_label, value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _name(choices: Sequence[Choice]) -> str:
    """Return a configuration's name, which is also that of its folder.

    A setting appears with the last part of its name where that is unique, a named choice as its label alone.
    """
    known, last = known_settings(), Counter(choice.axis.rpartition(".")[2] for choice in choices)
    parts = []
    for axis, label, _ in choices:
        short = axis.rpartition(".")[2]
        of_setting = axis in known or "." in axis
        parts.append(f"{short if last[short] == 1 else axis}-{label}" if of_setting else label)
    name = re.sub(r"[^\w.+-]+", "-", "_".join(parts)).strip(".")
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _check_distinct(trials: Sequence[Trial]) -> None:
    """Refuse two trials of one name, or of the same settings."""
    keys, plans = dict[str, Trial](), dict[str, Trial]()
    for trial in trials:
        if trial.key in keys:
            raise InputError(f"two trials are called {trial.key}: a value or a name is listed twice.")
        if (same := plans.get(trial.plan.yaml)) is not None:
            raise InputError(
                f"two trials of the sweep are the same, {same.key} and {trial.key}: an override of the command line "
                "replaces what differs, or nothing differs."
            )
        keys[trial.key] = plans[trial.plan.yaml] = trial


def _check_test_images(trials: Sequence[Trial]) -> None:
    """Refuse trials with different test images, which cannot be compared at the end."""
    first, *others = trials
    for setting in ("name", "test", "folds", "multi_label"):
        wanted = getattr(first.plan.settings.data, setting)
        for trial in others:
            if (own := getattr(trial.plan.settings.data, setting)) != wanted:
                raise InputError(
                    f"trial {trial.key} has data.{setting} {own!r}, but {first.key} {wanted!r}: different test images "
                    "cannot be compared; make a sweep of each."
                )


class SweepRunner:
    """Trains the trials of a sweep in a folder, ``NAME/seed-S`` for each, with folds ``NAME/seed-S_fold-I``.

    Finished trials are not trained again, others are resumed. Several processes, on several machines that see the
    folder, may train one sweep: each takes the next trial that no other trains. ``errors`` says why trials failed.
    """

    def __init__(self, trials: Sequence[Trial], folder: Path) -> None:
        self.trials, self.folder, self.errors = trials, folder, dict[str, str]()
        self._finished = set[str]()
        _check_folder(folder)
        for trial in trials:
            self._make_plan(trial)

    def _make_plan(self, trial: Trial) -> Plan:
        """Return a trial's plan, with the defaults of the machine where its run began."""
        if not (run := self.run(trial)).config_file.is_file():
            return trial.plan
        plan = make_plan(merge(trial.recipe, run.resolved()), trial.overrides)
        check_unchanged(run, plan)
        return plan

    def run(self, trial: Trial) -> RunFolder:
        """Return a trial's folder."""
        return RunFolder(self.folder / trial.key)

    def train(self) -> None:
        """Train unfinished trials; one that fails does not stop the others, but a signal does.

        ``trials.csv`` is written before and after each trial.
        """
        self.write()
        for trial in self.trials:
            run = self.run(trial)
            try:  # another process may have begun the run meanwhile
                train_plan(self._make_plan(trial), run, resume=run.config_file.is_file())
            except InUseError:
                log.info("%s is trained by another process", trial.key)
            except StoppedError:
                raise
            except InputError as error:
                self.errors[trial.key] = extract_message(error)
            except Exception as error:
                self.errors[trial.key] = f"{type(error).__name__}: {reason(error)}."
            self.write()

    def _read_metrics(self, trial: Trial) -> list[dict[str, float]]:
        """Return a trial's epochs; if they cannot be read, it has failed."""
        try:
            return self.run(trial).read_metrics()
        except InputError as error:
            self.errors.setdefault(trial.key, extract_message(error))
            return []

    def status(self, trial: Trial) -> str:
        """Return ``waiting``, ``begun``, ``finished`` or ``failed``."""
        if trial.key in self.errors:
            return "failed"
        run = self.run(trial)
        if trial.key not in self._finished:  # a whole checkpoint is read to know
            if not run.config_file.is_file():
                return "waiting"
            if run.finished_epochs() < trial.plan.epochs:
                return "begun"
            self._finished.add(trial.key)
        return "finished"

    def counts(self) -> str:
        """Return how many trials there are of each status."""
        found = Counter(self.status(trial) for trial in self.trials)
        return ", ".join(f"{count} {status}" for status, count in found.items())

    def write(self) -> None:
        """Write ``trials.csv``: a row for each trial."""
        make_folder(self.folder)
        axes = list(dict.fromkeys(axis for trial in self.trials for axis in trial.choices))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        first, *rest = COLUMNS
        writer.writerow([first, *axes, *rest])
        for trial in self.trials:
            rows = self._read_metrics(trial)
            loss = rows[-1].get("train_loss", math.nan) if rows else math.nan
            seconds = sum(row["seconds"] for row in rows) if rows else math.nan
            numbers = [_validation_score(rows), loss, seconds]
            cells = [trial.key, *(trial.choices.get(axis, "") for axis in axes), str(trial.plan.settings.seed)]
            cells += [self.status(trial), str(len(rows))]
            cells += ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]
            writer.writerow([csv_cell(cell) for cell in [*cells, self.errors.get(trial.key, "")]])
        write_text(self.folder / FILE, text.getvalue())

    def groups(self) -> list[Networks]:
        """Return the configurations with all seeds and folds finished, to compare them."""
        unfinished = {trial.name for trial in self.trials if self.status(trial) != "finished"}
        folders: dict[str, list[list[Path]]] = {}
        for trial in self.trials:
            if trial.name not in unfinished:
                folders.setdefault(trial.name, []).append([self.folder / trial.key])
        return [Networks(name, own) for name, own in folders.items()]

    def best(self, groups: Sequence[Networks]) -> tuple[str, float]:
        """Return the configuration of the highest mean score on validation images; NaN where there is none."""
        scores = {}
        for group in groups:
            histories = [self.run(trial).read_metrics() for trial in self.trials if trial.name == group.name]
            scores[group.name] = statistics.fmean(map(_validation_score, histories))
        best = max(scores, key=lambda name: -math.inf if math.isnan(scores[name]) else scores[name])
        return best, scores[best]


def _validation_score(rows: Sequence[Mapping[str, float]]) -> float:
    """Return the accuracy on validation images after the last epoch, or the mAP of several labels; NaN without any."""
    last = rows[-1] if rows else {}
    return last.get("val_map", last.get("val_accuracy", math.nan))


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is not a sweep's: a run's, or one with another ``trials.csv``."""
    if RunFolder(folder).config_file.is_file():
        raise InputError(f"{folder} is a run's folder; choose another one for the sweep with --out.")
    file = folder / FILE
    if file.is_file():
        with file.open("rb") as content:
            columns = content.readline(2**16).decode("utf-8", "replace").strip().split(",")
        if columns[0] != COLUMNS[0] or columns[1 - len(COLUMNS) :] != list(COLUMNS[1:]):
            raise InputError(f"{file} is not a table of a sweep's trials; choose another folder with --out.")
