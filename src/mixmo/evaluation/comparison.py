"""The entries of a comparison: runs, ensembles, seeds, other programs' predictions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixmo.config.plan import flatten
from mixmo.config.settings import Settings, neutral_settings, values_of
from mixmo.data.module import DataModule
from mixmo.errors import InputError, MissingError
from mixmo.escaping import printable
from mixmo.evaluation.costs import costs
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.intervals import BIASED, UNKNOWN, Interval, difference_intervals, seeds_interval
from mixmo.evaluation.results import EvaluationOptions, EvaluationResult, evaluate_predictions, evaluate_runs
from mixmo.runs import RunFolder


class Networks(NamedTuple):
    """The networks of one row of a comparison.

    Attributes:
        name: What to call it.
        entries: One, or one for each seed and fold of a method; each is the folders of runs or open runs, several of
            which form an ensemble, or another program's file.
        place: A longer name, used where two names are equal.
    """

    name: str
    entries: Sequence[Sequence[Path | TrainedRun]]
    place: str = ""


class Replicate(NamedTuple):
    """What distinguishes runs of one method, and pairs those of two: the seed, and the fold that is the test set."""

    seed: int = 0
    fold: int | None = None


def _replicate(run: RunFolder) -> Replicate:
    settings = run.settings()
    return Replicate(settings.seed, None if settings.data.folds is None else settings.data.fold)


@dataclass(frozen=True)
class Entry:
    """A run, several as one ensemble, or another program's predictions.

    Attributes:
        name: The folders, or the file.
        runs: The runs; none for a file.
        result: Its evaluation on the test set.
        costs: Those of :func:`mixmo.evaluation.costs.costs`, summed over the runs; empty for a file.
        data: The images that a program gave; ``None`` where the first run's settings name them.
    """

    name: str
    runs: list[RunFolder]
    result: EvaluationResult
    costs: dict[str, float]
    data: DataModule | None = None

    def flat(self) -> dict[str, float]:
        """Return metrics and costs, by the keys of ``test.json`` and of :func:`mixmo.evaluation.costs.costs`."""
        return self.result.flat() | self.costs

    @cached_property
    def replicate(self) -> Replicate:
        """The seed and the fold of its first run."""
        return _replicate(self.runs[0]) if self.runs else Replicate()


@dataclass(frozen=True)
class Group:
    """Entries that differ only in seed and fold, or a single one."""

    name: str
    entries: list[Entry]

    @property
    def multi_label(self) -> bool:
        """Whether images may have several labels."""
        return self.entries[0].result.predictions.multi_label

    def values(self, key: str) -> list[float]:
        """Return a metric or a cost of every entry, by its key of :meth:`Entry.flat`; NaN where it is not known."""
        return [entry.flat().get(key, math.nan) for entry in self.entries]

    def mean(self, key: str) -> float:
        """Return the mean over entries; NaN where it is not known."""
        return statistics.fmean(self.values(key))

    def replicates(self) -> list[Replicate]:
        """Return the seed and the fold of every entry, in their order."""
        return [entry.replicate for entry in self.entries]

    @property
    def folds(self) -> list[int]:
        """The folds that are test sets; none without cross-validation."""
        return sorted({each.fold for each in self.replicates() if each.fold is not None})

    @property
    def unit(self) -> str:
        """What the entries are, in words: seeds, folds, or seeds and folds."""
        if len(self.folds) < 2:
            return "seeds"
        return "seeds and folds" if len({each.seed for each in self.replicates()}) > 1 else "folds"

    @property
    def images(self) -> int:
        """The images of the test set, or of all folds together."""
        return sum({each.replicate.fold: len(each.result.predictions.targets) for each in self.entries}.values())

    def deviation(self, key: str) -> float:
        """Return the standard deviation over entries; NaN for a single one, or where it is not known."""
        return float(np.std(self.values(key), ddof=1)) if len(self.entries) > 1 else math.nan


def read_groups(found: Sequence[Networks], options: EvaluationOptions) -> list[Group]:
    """Return the groups of a comparison, evaluated; an open run keeps the checkpoint it was opened with.

    Raises:
        MissingError: if a folder or file is missing or holds no run.
        InputError: if they were tested on different images, or a group's runs differ in more than their seed and fold.
    """
    short = [each.name for each in found]
    names = [each.place if each.place and short.count(each.name) > 1 else each.name for each in found]
    if len(set(names)) < len(names):
        raise InputError(f"{next(name for name in names if names.count(name) > 1)} is named twice.")
    for each in found:
        place = each.place or each.name
        for members in each.entries:
            if len({_place(run).resolve() for run in members}) < len(members):
                raise InputError(f"{printable(place)} names a run twice; an ensemble needs different runs.")
        if len(each.entries) > 1:
            _check_seeds(place, [RunFolder(_place(run)) for (run,) in each.entries])
    groups = []
    for name, each in zip(names, found, strict=True):
        entries = [_entry(members, options) for members in each.entries]
        groups.append(Group(name, sorted(entries, key=lambda entry: entry.replicate.fold or 0)))
    _check_alike(groups)
    return groups


def read_word(word: str) -> Networks:
    """Return what a word of the command line names.

    It is a run's folder; a folder of runs that differ by their seed or fold; several runs joined by ``+``, which are
    one ensemble; or an ``.npz`` file of another program's predictions. ``NAME=`` before it gives it a name.
    """
    name, equals, rest = word.partition("=")
    if not equals or Path(word).exists():
        name, rest = "", word
    paths = [Path(rest)] if Path(rest).exists() else [Path(part) for part in rest.split("+")]
    name = name or " + ".join(path.name for path in paths)
    if len(paths) > 1 or paths[0].is_file() or (paths[0] / "config.yaml").is_file():
        return Networks(name, [paths], word)
    if not paths[0].is_dir():
        raise MissingError(f"there is no run folder {paths[0]} and no such file of predictions.")
    seeds = [[each.parent] for each in sorted(paths[0].glob("*/config.yaml"))]
    if not seeds:
        raise MissingError(f"{paths[0]} is not a run's folder and contains none.")
    return Networks(name, seeds, word)


def _place(each: Path | TrainedRun) -> Path:
    return each.path if isinstance(each, TrainedRun) else each


def _check_seeds(folder: str, runs: Sequence[RunFolder]) -> None:
    """Refuse to average runs that differ in more than their seed, their fold and where they were trained."""
    free = neutral_settings() | {"seed", "data.fold"}
    found = [_replicate(run) for run in runs]
    if twice := next((each for each in found if found.count(each) > 1), None):
        same = [str(run.path) for run, each in zip(runs, found, strict=True) if each == twice]
        what = f"the same seed {twice.seed}" + ("" if twice.fold is None else f" and fold {twice.fold}")
        raise InputError(f"{' and '.join(same[:2])} have {what}: one run, counted twice; remove one.")
    default = dict(flatten(values_of(Settings())))  # of settings that earlier versions lack
    first = default | runs[0].conditions() | dict(flatten(runs[0].trained_config()))
    for run in runs[1:]:
        own = default | run.conditions() | dict(flatten(run.trained_config()))
        for key in first:
            if key not in free and key in own and own[key] != first[key]:  # earlier versions have no conditions
                raise InputError(
                    f"runs in {folder} differ in more than the seed: {key} is {first[key]!r} in {runs[0].path} but "
                    f"{own[key]!r} in {run.path}; compare such runs by naming them one by one."
                )


def _entry(members: Sequence[Path | TrainedRun], options: EvaluationOptions) -> Entry:
    name = " + ".join(str(_place(each)) for each in members)
    if files := [each for each in members if isinstance(each, Path) and each.is_file()]:
        if len(members) > 1:
            raise InputError(f"{name} cannot be one ensemble; only runs can.")
        return Entry(name, [], evaluate_predictions(files[0]), {})
    runs = [
        each if isinstance(each, TrainedRun) else TrainedRun(RunFolder(each), options.checkpoint, options.download)
        for each in members
    ]
    result = evaluate_runs(runs, options)
    each_costs = [costs(run) for run in runs]
    total = {key: sum(cost[key] for cost in each_costs) for key in each_costs[0]}
    data = runs[0].data if runs[0].data.given is not None else None
    return Entry(name, [run.folder for run in runs], result, total, data)


def _check_alike(groups: Sequence[Group]) -> None:
    entries = [entry for group in groups for entry in group.entries]
    firsts = {entry.replicate.fold: entry for entry in reversed(groups[0].entries)}
    sources = {entry.result.corruptions.source for entry in entries if entry.result.corruptions is not None}
    if len(sources) > 1:
        raise InputError(f"the corruptions are not the same for all: {'; '.join(sorted(sources))}.")
    for entry in entries:
        own, first = entry.result.predictions, firsts.get(entry.replicate.fold, groups[0].entries[0])
        wanted = first.result.predictions
        named = bool(entry.runs and first.runs)  # files may lack the names of classes
        fits = own.multi_label == wanted.multi_label and own.are_of(wanted)
        fits = fits and own.logits.shape[2] == wanted.logits.shape[2]
        if not fits or (named and own.classes != wanted.classes):
            raise InputError(f"{entry.name} was tested on other images or classes than {first.name}.")
    for group in groups if any(len(each.entries) > 1 for each in groups) else ():
        if group.folds != groups[0].folds:
            raise InputError(
                f"{group.name} was tested on the folds {group.folds} and {groups[0].name} on {groups[0].folds}; "
                "compare equal ones."
            )


def intervals_between(group: Group, first: Group, keys: Sequence[str]) -> dict[str, Interval]:
    """Return 95 % intervals of the differences of ``group`` to ``first`` in some metrics; unknown ones are left out.

    With one network on each side they are over test images, for the metrics of
    :func:`mixmo.evaluation.intervals.difference_intervals`. With two or more seeds or folds on both sides they are
    Student's over these, paired if both have the same, else Welch's, for all metrics that binning does not bias. There
    are none for one seed against several, or over images with several labels.
    """
    counts = len(group.entries), len(first.entries)
    found: dict[str, Interval] = {}
    if counts == (1, 1) and not group.multi_label:
        own, other = (each.entries[0].result.predictions.average() for each in (group, first))
        found = difference_intervals(own, other)
    elif min(counts) > 1:
        own_keys, first_keys = group.replicates(), first.replicates()
        paired = sorted(own_keys) == sorted(first_keys)
        for key in set(keys) - set(BIASED):
            sides = ((own_keys, group.values(key)), (first_keys, first.values(key)))
            own_values, values = ([value for _, value in sorted(zip(*side, strict=True))] for side in sides)
            found[key] = seeds_interval(own_values, values, paired, len(group.folds))
    return {key: found[key] for key in keys if not math.isnan(found.get(key, UNKNOWN)[0])}
