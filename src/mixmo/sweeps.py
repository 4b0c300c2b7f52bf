"""Sweeps: train and compare every combination of a grid with every seed and fold."""

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
from mixmo.data.module import DataModule
from mixmo.errors import InputError, InUseError, StoppedError, one_of, reason
from mixmo.escaping import csv_cell
from mixmo.evaluation.comparison import Networks
from mixmo.files import make_folder, read_yaml, write_text
from mixmo.library import train_plan
from mixmo.runs import RunFolder, fill_open_settings
from mixmo.training.resuming import MAY_CHANGE, check_unchanged
from mixmo.validation import Integer, settings_class

FILE = "trials.csv"
COLUMNS = ("trial", "seed", "status", "epochs", "val_score", "train_loss", "seconds", "error")
"""Columns of that file; those of the grid follow the first. The score is validation accuracy, or mAP."""
FOLD = "data.fold"
RESERVED = ("comparison", FILE)
"""Names in a sweep's folder that are not configurations."""
MAX_NAME = 120
"""Maximum characters of a configuration's name; a longer one is cut, and a digest of the full name appended."""
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
    """Seeds of every configuration; the recipe's seed by default. All share one split of the images, drawn with the
    recipe's seed unless ``data.split_seed`` is set.
    """
    folds: Annotated[Integer, Field(ge=2)] | None = None
    """k: every configuration is trained k times, with each fold of the images (``data.folds``) as the test set once."""


class Choice(NamedTuple):
    """A value of an axis of the grid: its label, and its settings as in a recipe."""

    axis: str
    label: str
    settings: Recipe


@dataclass(frozen=True)
class Trial:
    """A run of a sweep."""

    name: str
    """Configuration name, shared by trials that differ only in seed or fold."""
    choices: dict[str, str]
    """Grid labels by axis, and the fold."""
    recipe: Recipe
    """Settings, without overrides."""
    overrides: dict[str, Any]
    """Command-line overrides, and the seed and fold."""
    plan: Plan
    """The plan resolved from both on this machine."""

    @property
    def key(self) -> str:
        """The trial's folder within the sweep's."""
        seed, data = self.plan.settings.seed, self.plan.settings.data
        return f"{self.name}/seed-{seed}{'' if data.folds is None else f'_fold-{data.fold}'}"


def load_sweep(file: Path, overrides: Mapping[str, Any] | None = None) -> list[Trial]:
    r"""Return the checked trials of a sweep's file, the first seed and fold of every configuration first.

    ``overrides`` are settings of all trials by their dotted names.

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
    for name, key in (("seed", "seeds"), ("data.folds", "folds"), (FOLD, "folds")):
        if name in (overrides or {}):
            raise InputError(f"--{name} is not an option of a sweep; set sweep.{key} in {file}.")
    trials = list(_make_trials(content, _read_settings(section), dict(overrides or {}), file))
    _check_distinct(trials)
    _check_test_images(trials)
    return trials


def _read_settings(section: Mapping[str, Any]) -> SweepSettings:
    settings = SweepSettings(**{str(name): value for name, value in section.items()})
    if settings.seeds is not None and (not settings.seeds or len(set(settings.seeds)) < len(settings.seeds)):
        raise InputError(f"sweep.seeds is {settings.seeds}; give a list of different seeds.")
    if not (settings.grid or settings.seeds or settings.folds):
        raise InputError("sweep has no grid, seeds or folds; set one of them.")
    return settings


def _make_trials(base: Recipe, settings: SweepSettings, overrides: dict[str, Any], file: Path) -> Iterator[Trial]:
    configurations = _combine_axes(settings.grid, file.stem)
    for seed, fold in itertools.product(settings.seeds or (None,), range(settings.folds or 1)):
        values = overrides | ({} if seed is None else {"seed": seed})
        values |= {"data.folds": settings.folds, FOLD: fold} if settings.folds else {}
        for name, choices in configurations:
            try:
                recipe = combine_bases([base, *(choice.settings for choice in choices)], str(file))
                recipe = merge({"data": {"split_seed": recipe.get("seed", 0)}}, recipe)  # one split for all seeds
                plan = make_plan(recipe, values)
            except InputError as error:
                raise InputError(f"trial {name}: {error}") from error
            for setting in ("devices", "num_nodes"):
                if (count := getattr(plan.settings.trainer, setting)) not in (None, 1):
                    raise InputError(
                        f"trial {name}: trainer.{setting} is {count}, but each trial of a sweep trains on one "
                        "device; use `mixmo fit` for more."
                    )
            labels = {choice.axis: choice.label for choice in choices} | ({FOLD: str(fold)} if settings.folds else {})
            yield Trial(name, labels, recipe, values, plan)


def _combine_axes(grid: Mapping[str, Any], stem: str) -> list[tuple[str, tuple[Choice, ...]]]:
    """Return the name and choices of every configuration."""
    axes = [_read_axis(axis, values) for axis, values in grid.items()]
    if (count := math.prod(map(len, axes))) > MAX_CONFIGURATIONS:
        raise InputError(f"the sweep has {count} configurations, more than {MAX_CONFIGURATIONS}; reduce the grid.")
    configurations = [(_name_configuration(choices) or stem, choices) for choices in itertools.product(*axes)]
    for name, _ in configurations:
        if name in RESERVED:
            raise InputError(f"{name} is a reserved name in a sweep's folder; choose another name for the choice.")
    return configurations


def _read_axis(axis: str, values: Any) -> list[Choice]:
    """Return the choices of an axis of the grid."""
    if not isinstance(values, list | Mapping) or not values:
        raise InputError(f"sweep.grid.{axis} is {values!r}; give a list of values, or a mapping of named choices.")
    if isinstance(values, list):
        _check_setting(axis)
        return [_choose(axis, value) for value in values]
    for label, settings in values.items():
        if not isinstance(settings, Mapping | None):
            raise InputError(
                f"sweep.grid.{axis}.{label} is {settings!r}; give settings as in a recipe, or make the axis a list."
            )
    return [Choice(axis, str(label), dict(settings or {})) for label, settings in values.items()]


def _check_setting(name: str) -> None:
    """Refuse an unknown setting; options of other libraries are not checked."""
    if hint := {"seed": "list seeds in sweep.seeds", FOLD: "set sweep.folds"}.get(name):
        raise InputError(f"sweep.grid has {name}; {hint} instead, so that the comparison averages these runs.")
    known = known_settings()
    section, options, _ = name.partition(".options.")
    if not (options and f"{section}.options" in known):
        one_of(name, known, "setting in sweep.grid")


def _choose(name: str, value: Any) -> Choice:
    settings = value
    for part in reversed(name.split(".")):
        settings = {part: settings}
    return Choice(name, _label(value), settings)


def _label(value: Any) -> str:
    """Format a value as YAML does, for names."""
    if isinstance(value, Mapping):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, list):
        return "-".join(map(_label, value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _name_configuration(choices: Sequence[Choice]) -> str:
    """Return the name of a configuration and its folder.

    It has the last part of a setting's name, if that is unique, with the value; of a named choice only the label.
    """
    known, last = known_settings(), Counter(choice.axis.rpartition(".")[2] for choice in choices)
    parts = []
    for axis, label, _ in choices:
        short = axis.rpartition(".")[2]
        is_setting = axis in known or "." in axis
        parts.append(f"{short if last[short] == 1 else axis}-{label}" if is_setting else label)
    name = re.sub(r"[^\w.+-]+", "-", "_".join(parts)).strip(".")
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _check_distinct(trials: Sequence[Trial]) -> None:
    """Refuse trials with equal names or settings."""
    keys, plans = dict[str, Trial](), dict[str, Trial]()
    for trial in trials:
        if trial.key in keys:
            raise InputError(f"two trials are called {trial.key}; remove the value or name that is listed twice.")
        if (same := plans.get(trial.plan.yaml)) is not None:
            raise InputError(
                f"trials {same.key} and {trial.key} have the same settings; vary another setting, or leave out the "
                "command-line option that overrides it."
            )
        keys[trial.key] = plans[trial.plan.yaml] = trial


def _check_test_images(trials: Sequence[Trial]) -> None:
    """Refuse trials with different test images, which cannot be compared."""
    first, *others = trials
    for setting in ("name", "test", "folds", "multi_label"):
        wanted = getattr(first.plan.settings.data, setting)
        for trial in others:
            if (value := getattr(trial.plan.settings.data, setting)) != wanted:
                raise InputError(
                    f"trial {trial.key} has data.{setting} {value!r}, but {first.key} {wanted!r}: different test "
                    "images cannot be compared; make a sweep of each."
                )
    firsts, known = dict[int, Trial](), dict[str, tuple[bool, str]]()
    for trial in trials:
        first = firsts.setdefault(trial.plan.settings.data.fold, trial)
        draws, own = _find_draws(first), _find_draws(trial)
        if own == draws:
            continue
        tested = [_describe_test_images(known, each) for each in (first, trial)]
        if any(drawn for drawn, _ in tested) and len({fingerprint for _, fingerprint in tested}) > 1:
            changes = [f"{name} {value}, not {draws[name]}" for name, value in own.items() if value != draws[name]]
            raise InputError(
                f"trial {trial.key} has {', and '.join(changes)} as {first.key}, so other test images would be drawn, "
                "which cannot be compared; make a sweep of each."
            )


def _describe_test_images(known: dict[str, tuple[bool, str]], trial: Trial) -> tuple[bool, str]:
    """Return whether a trial's test images are drawn, and their fingerprint; equal datasets are opened once."""
    settings = trial.plan.settings
    if (key := repr((settings.data, settings.seed))) not in known:
        data = DataModule(settings.data, settings.seed)
        known[key] = data.is_drawn("test"), data.fingerprint("test")
    return known[key]


def _find_draws(trial: Trial) -> dict[str, Any]:
    """Return the settings that may change which test images are drawn, by name."""
    settings = trial.plan.settings
    values = {f"data.{name}": getattr(settings.data, name) for name in ("validation", "images_per_class")}
    return values | {"data.split_seed": settings.data.seed_of_split(settings.seed)}


class SweepRunner:
    """Trains the trials of a sweep in subfolders ``NAME/seed-S``, or ``NAME/seed-S_fold-I`` with folds.

    Finished trials are skipped, others resumed. Several processes, also on machines that share the folder, can train
    one sweep: each takes the next trial that no other is training. ``errors`` has the messages of failed trials.
    """

    def __init__(self, trials: Sequence[Trial], folder: Path) -> None:
        self.trials, self.folder, self.errors = trials, folder, dict[str, str]()
        self._finished = set[str]()
        _check_folder(folder)
        for trial in trials:
            self._make_plan(trial)

    def _make_plan(self, trial: Trial) -> Plan:
        """Return a trial's plan; a run that has begun keeps its first machine's defaults."""
        if not (run := self.run(trial)).config_file.is_file():
            return trial.plan
        plan = make_plan(fill_open_settings(trial.recipe, run.resolved()), trial.overrides)
        fixed = {"trainer.max_epochs"} if run.finished_epochs() else set()  # the learning rate has followed them
        check_unchanged(run, plan, None, MAY_CHANGE - fixed, "or choose another folder with --out.")
        return plan

    def run(self, trial: Trial) -> RunFolder:
        """Return a trial's folder."""
        return RunFolder(self.folder / trial.key)

    def train(self) -> None:
        """Train unfinished trials; a failure does not stop the others, a signal does.

        Writes ``trials.csv`` before and after each trial.
        """
        self.write()
        for trial in self.trials:
            run = self.run(trial)
            try:  # another process may have begun the run in the meantime
                train_plan(self._make_plan(trial), run, resume=run.config_file.is_file())
            except InUseError:
                log.info("%s is being trained by another process", trial.key)
            except StoppedError:
                raise
            except InputError as error:
                self.errors[trial.key] = str(error)
            except Exception as error:
                self.errors[trial.key] = f"{type(error).__name__}: {reason(error)}."
            self.write()

    def _read_metrics(self, trial: Trial) -> list[dict[str, float]]:
        """Return a trial's metrics; an unreadable file counts as a failure."""
        try:
            return self.run(trial).read_metrics()
        except InputError as error:
            self.errors.setdefault(trial.key, str(error))
            return []

    def status(self, trial: Trial) -> str:
        """Return ``waiting``, ``begun``, ``finished`` or ``failed``."""
        if trial.key in self.errors:
            return "failed"
        run = self.run(trial)
        if trial.key not in self._finished:  # cached, because this reads a whole checkpoint
            if not run.config_file.is_file():
                return "waiting"
            if not run.is_finished(trial.plan.epochs, trial.plan.settings.trainer.patience):
                return "begun"
            self._finished.add(trial.key)
        return "finished"

    def counts(self) -> str:
        """Return the number of trials by status, as text."""
        counts = Counter(self.status(trial) for trial in self.trials)
        return ", ".join(f"{count} {status}" for status, count in counts.items())

    def write(self) -> None:
        """Write ``trials.csv``, a row per trial."""
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
        """Return the configurations whose seeds and folds are all finished."""
        unfinished = {trial.name for trial in self.trials if self.status(trial) != "finished"}
        folders: dict[str, list[list[Path]]] = {}
        for trial in self.trials:
            if trial.name not in unfinished:
                folders.setdefault(trial.name, []).append([self.folder / trial.key])
        return [Networks(name, entries) for name, entries in folders.items()]

    def best(self, groups: Sequence[Networks]) -> tuple[str, float]:
        """Return the configuration with the highest mean validation score, and the score; NaN if there is none."""
        scores = {}
        for group in groups:
            histories = [self.run(trial).read_metrics() for trial in self.trials if trial.name == group.name]
            scores[group.name] = statistics.fmean(map(_validation_score, histories))
        best = max(scores, key=lambda name: -math.inf if math.isnan(scores[name]) else scores[name])
        return best, scores[best]


def _validation_score(rows: Sequence[Mapping[str, float]]) -> float:
    """Return the validation accuracy, or mAP if multi-label, after the last epoch; NaN without validation."""
    last = rows[-1] if rows else {}
    return last.get("val_map", last.get("val_accuracy", math.nan))


def _check_folder(folder: Path) -> None:
    """Refuse a run's folder, or one with a foreign ``trials.csv``."""
    if RunFolder(folder).config_file.is_file():
        raise InputError(f"{folder} is a run's folder; choose another folder for the sweep with --out.")
    file = folder / FILE
    if file.is_file():
        with file.open("rb") as content:
            columns = content.readline(2**16).decode("utf-8", "replace").strip().split(",")
        if columns[0] != COLUMNS[0] or columns[1 - len(COLUMNS) :] != list(COLUMNS[1:]):
            raise InputError(f"{file} is not a table of a sweep's trials; choose another folder with --out.")
