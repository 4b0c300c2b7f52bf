"""The entries of a comparison: runs, ensembles, seeds, other programs' predictions."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
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
        name: Displayed name.
        entries: One, or one for each seed and fold of a method. Each is one run or several as an ensemble (folders or
            open runs), or another program's file.
        place: A longer name, used if two names are equal.
    """

    name: str
    entries: Sequence[Sequence[Path | TrainedRun]]
    place: str = ""


class Replicate(NamedTuple):
    """Seed and test fold, which distinguish runs of one method and pair those of two, and the number of folds."""

    seed: int = 0
    fold: int | None = None
    folds: int = 1


def _replicate(run: RunFolder) -> Replicate:
    settings = run.settings()
    folds = settings.data.folds
    return Replicate(settings.seed) if folds is None else Replicate(settings.seed, settings.data.fold, folds)


@dataclass(frozen=True)
class Entry:
    """A run, several as one ensemble, or another program's predictions.

    Attributes:
        name: The folders, or the file.
        runs: The runs; empty for a file.
        result: The evaluation on the test set.
        costs: The :func:`mixmo.evaluation.costs.costs`, summed over the runs; empty for a file.
        data: Images passed by a program; ``None`` if the first run's settings name them.
    """

    name: str
    runs: list[RunFolder]
    result: EvaluationResult
    costs: dict[str, float]
    data: DataModule | None = None

    def flat(self) -> dict[str, float]:
        """Return metrics and costs by key of ``test.json`` and :func:`mixmo.evaluation.costs.costs`."""
        return self.result.flat() | self.costs

    @cached_property
    def replicate(self) -> Replicate:
        """The seed and fold of the first run."""
        return _replicate(self.runs[0]) if self.runs else Replicate()


@dataclass(frozen=True)
class Group:
    """Entries that differ only in seed and fold."""

    name: str
    entries: list[Entry]

    @property
    def multi_label(self) -> bool:
        """Whether images may have several labels."""
        return self.entries[0].result.predictions.multi_label

    def values(self, key: str) -> list[float]:
        """Return a metric or cost of each entry, by key of :meth:`Entry.flat`; NaN if unknown."""
        return [entry.flat().get(key, math.nan) for entry in self.entries]

    def mean(self, key: str) -> float:
        """Return the mean over entries; NaN if unknown."""
        return statistics.fmean(self.values(key))

    def replicates(self) -> list[Replicate]:
        """Return the seed and fold of each entry."""
        return [entry.replicate for entry in self.entries]

    @property
    def folds(self) -> list[int]:
        """The test folds; empty without cross-validation."""
        return sorted({replicate.fold for replicate in self.replicates() if replicate.fold is not None})

    @property
    def unit(self) -> str:
        """What distinguishes the entries: seeds, folds, or seeds and folds."""
        if len(self.folds) < 2:
            return "seeds"
        return "seeds and folds" if len({replicate.seed for replicate in self.replicates()}) > 1 else "folds"

    @property
    def images(self) -> int:
        """The number of images in the test set, or in all test folds."""
        return sum({entry.replicate.fold: len(entry.result.predictions.targets) for entry in self.entries}.values())

    def deviation(self, key: str) -> float:
        """Return the standard deviation over entries; NaN for a single one, or if unknown."""
        return float(np.std(self.values(key), ddof=1)) if len(self.entries) > 1 else math.nan


def read_groups(rows: Sequence[Networks], options: EvaluationOptions) -> list[Group]:
    """Evaluate the groups of a comparison; open runs are evaluated at the checkpoint they were opened with.

    Raises:
        MissingError: if a folder or file is missing or holds no run.
        InputError: if groups were tested on different images, or a group's runs differ in more than seed and fold.
    """
    short = [row.name for row in rows]
    names = [row.place if row.place and short.count(row.name) > 1 else row.name for row in rows]
    if len(set(names)) < len(names):
        raise InputError(f"{next(name for name in names if names.count(name) > 1)} is named twice.")
    for row in rows:
        place = row.place or row.name
        for members in row.entries:
            if len({_path(run).resolve() for run in members}) < len(members):
                raise InputError(f"{printable(place)} names a run twice; an ensemble needs different runs.")
        if len(row.entries) > 1:
            _check_seeds(place, [RunFolder(_path(run)) for (run,) in row.entries])
    groups = []
    for name, row in zip(names, rows, strict=True):
        entries = [_evaluate_entry(members, options) for members in row.entries]
        groups.append(Group(name, sorted(entries, key=lambda entry: entry.replicate.fold or 0)))
    _check_comparable(groups)
    return groups


def parse_entry(argument: str) -> Networks:
    """Parse one positional argument of ``mixmo compare``.

    It is a run's folder; a folder of runs that differ by seed or fold; runs joined by ``+``, as one ensemble; or an
    ``.npz`` file of another program's predictions. ``NAME=`` in front gives it a name.
    """
    name, equals, rest = argument.partition("=")
    if not equals or Path(argument).exists():
        name, rest = "", argument
    paths = [Path(rest)] if Path(rest).exists() else [Path(part) for part in rest.split("+")]
    name = name or " + ".join(path.name for path in paths)
    if len(paths) > 1 or paths[0].is_file() or (paths[0] / "config.yaml").is_file():
        return Networks(name, [paths], argument)
    if not paths[0].is_dir():
        raise MissingError(f"there is no run folder {paths[0]} and no such file of predictions.")
    seeds = [[file.parent] for file in sorted(paths[0].glob("*/config.yaml"))]
    if not seeds:
        raise MissingError(f"{paths[0]} is not a run's folder and contains none.")
    return Networks(name, seeds, argument)


def _path(run: Path | TrainedRun) -> Path:
    return run.path if isinstance(run, TrainedRun) else run


def _check_seeds(folder: str, runs: Sequence[RunFolder]) -> None:
    """Refuse to average runs that repeat a seed and fold, or differ in other settings that affect results."""
    free = neutral_settings() | {"seed", "data.fold"}
    replicates = [_replicate(run) for run in runs]
    if twice := next((replicate for replicate in replicates if replicates.count(replicate) > 1), None):
        same = [str(run.path) for run, replicate in zip(runs, replicates, strict=True) if replicate == twice]
        what = f"the same seed {twice.seed}" + ("" if twice.fold is None else f" and fold {twice.fold}")
        raise InputError(f"{' and '.join(same[:2])} have {what}: one run, counted twice; remove one.")
    default = dict(flatten(values_of(Settings())))  # of settings that earlier versions lack
    first = default | runs[0].conditions() | dict(flatten(runs[0].trained_config()))
    for run in runs[1:]:
        values = default | run.conditions() | dict(flatten(run.trained_config()))
        for key in first:
            if key not in free and key in values and values[key] != first[key]:  # earlier versions have no conditions
                raise InputError(
                    f"runs in {folder} differ in more than the seed: {key} is {first[key]!r} in {runs[0].path} but "
                    f"{values[key]!r} in {run.path}; to compare them, name them one by one."
                )
    counts = Counter(replicate.fold for replicate in replicates)
    if len(set(counts.values())) > 1:  # else means over runs weight the folds differently
        known = {(replicate.seed, replicate.fold) for replicate in replicates}
        cells = itertools.product(sorted({replicate.seed for replicate in replicates}), counts)
        seed, fold = next(cell for cell in cells if cell not in known)
        raise InputError(
            f"{folder} has no run of seed {seed} and fold {fold}, so folds would count differently; train it, or leave "
            "out the other runs of this seed."
        )


def _evaluate_entry(members: Sequence[Path | TrainedRun], options: EvaluationOptions) -> Entry:
    name = " + ".join(str(_path(run)) for run in members)
    if files := [path for path in members if isinstance(path, Path) and path.is_file()]:
        if len(members) > 1:
            raise InputError(f"{name} cannot be one ensemble; only runs can.")
        return Entry(name, [], evaluate_predictions(files[0]), {})
    runs = [
        run if isinstance(run, TrainedRun) else TrainedRun(RunFolder(run), options.checkpoint, options.download)
        for run in members
    ]
    result = evaluate_runs(runs, options)
    each_costs = [costs(run) for run in runs]
    total = {key: sum(cost[key] for cost in each_costs) for key in each_costs[0]}
    data = runs[0].data if runs[0].data.given is not None else None
    return Entry(name, [run.folder for run in runs], result, total, data)


def _check_comparable(groups: Sequence[Group]) -> None:
    entries = [entry for group in groups for entry in group.entries]
    firsts = {entry.replicate.fold: entry for entry in reversed(groups[0].entries)}
    sources = {entry.result.corruptions.source for entry in entries if entry.result.corruptions is not None}
    if len(sources) > 1:
        raise InputError(f"the networks were tested on different corruptions: {'; '.join(sorted(sources))}.")
    for entry in entries:
        first = firsts.get(entry.replicate.fold, groups[0].entries[0])
        predictions, wanted = entry.result.predictions, first.result.predictions
        numbers = list(map(str, range(len(wanted.classes))))  # the names in files that have none
        named = all(each.runs or each.result.predictions.classes != numbers for each in (entry, first))
        fits = predictions.multi_label == wanted.multi_label and predictions.same_images(wanted)
        fits = fits and predictions.logits.shape[2] == wanted.logits.shape[2]
        if not fits or (named and predictions.classes != wanted.classes):
            raise InputError(f"{entry.name} and {first.name} were tested on different images or classes.")
    for group in groups if any(len(each.entries) > 1 for each in groups) else ():
        if group.folds != groups[0].folds:
            raise InputError(
                f"{group.name} was tested on folds {group.folds}, but {groups[0].name} on {groups[0].folds}; compare "
                "runs of the same folds."
            )


def intervals_between(group: Group, first: Group, keys: Sequence[str]) -> dict[str, Interval]:
    """Return 95 % intervals of the differences of ``group`` to ``first`` in some metrics; unknown ones are left out.

    Between single networks, intervals are over test images, for the metrics of
    :func:`mixmo.evaluation.intervals.difference_intervals`; with several labels there are none. With two or more seeds
    or folds on both sides, they are over these, for all metrics that binning does not bias: Student's, paired, if both
    sides have the same, else Welch's. One seed against several has none.
    """
    groups = (group, first)
    counts = [len(side.entries) for side in groups]
    intervals: dict[str, Interval] = {}
    if counts == [1, 1] and not group.multi_label:
        own, other = (side.entries[0].result.predictions.average() for side in groups)
        intervals = difference_intervals(own, other)
    elif min(counts) > 1:
        folds = group.entries[0].replicate.folds if len(group.folds) > 1 else 1
        paired = sorted(group.replicates()) == sorted(first.replicates())
        for key in set(keys) - set(BIASED):
            pairs = (sorted(zip(side.replicates(), side.values(key), strict=True)) for side in groups)
            values, first_values = ([value for _, value in side] for side in pairs)
            intervals[key] = seeds_interval(values, first_values, paired, folds)
    return {key: intervals[key] for key in keys if not math.isnan(intervals.get(key, UNKNOWN)[0])}
