"""What is compared: runs, ensembles of runs, seeds, other programs' predictions; their costs and differences."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest, bootstrap
from torch.utils.flop_counter import FlopCounterMode

from mixmo.config.checking import flattened
from mixmo.config.plan import known_settings, make_plan
from mixmo.data.loading import read_test_images
from mixmo.errors import InputError, MissingError
from mixmo.evaluation.results import Judgement, Options, judge_predictions, judge_runs
from mixmo.reporting.records import read_history
from mixmo.runs import Run, load

RESAMPLES = 2000
PLACE = {
    "seed", "loggers", "data.root", "data.download", "data.in_memory", "data.workers", "data.eval_batch_size",
    "model.compile", "trainer.accelerator", "trainer.enable_progress_bar", "trainer.profiler",
}  # fmt: skip
"""The settings in which seeds of one method may differ: those of the machine beside the seed itself."""


@dataclass(frozen=True)
class Entry:
    """A run, several as one ensemble, or another program's predictions.

    Attributes:
        name: The folders, or the file.
        runs: The runs; none for a file.
        judgement: What is known on the test set.
        figures: Those of the judgement, and :func:`costs`, summed over the runs.
    """

    name: str
    runs: list[Run]
    judgement: Judgement
    figures: dict[str, float]


@dataclass(frozen=True)
class Group:
    """Entries that differ by their seed only, or a single one.

    Attributes:
        name: What to call them.
        entries: One or more.
    """

    name: str
    entries: list[Entry]

    def values(self, key: str) -> list[float]:
        """Return a figure of every entry; NaN where it is not known."""
        return [entry.figures.get(key, math.nan) for entry in self.entries]

    def mean(self, key: str) -> float:
        """Return the mean over entries; NaN where it is not known."""
        return statistics.fmean(self.values(key))

    def deviation(self, key: str) -> float:
        """Return the standard deviation over entries; NaN for a single one, or where the figure is not known."""
        return float(np.std(self.values(key), ddof=1)) if len(self.entries) > 1 else math.nan


def read_groups(words: Sequence[str], options: Options) -> list[Group]:
    """Return the groups of a comparison, judged (:func:`mixmo.evaluation.results.judge_runs`).

    Args:
        words: Each a run's folder; a folder of runs that differ by their seed; several runs joined by ``+``, which are
            one ensemble; or an ``.npz`` file of another program's predictions. ``NAME=`` before it gives it a name.
        options: How runs are judged.

    Raises:
        MissingError: if a folder or file is missing or holds no run.
        InputError: if they were tested on different images, or a folder's runs differ in more than their seed.
    """
    named = [_read(word) for word in words]
    names = [name for name, _ in named]
    names = [word if names.count(name) > 1 else name for word, name in zip(words, names, strict=True)]
    if len(set(names)) < len(names):
        raise InputError(f"{next(name for name in names if names.count(name) > 1)} stands there twice.")
    groups = [
        Group(name, [_entry(paths, options) for paths in entries])
        for name, (_, entries) in zip(names, named, strict=True)
    ]
    _check_alike(groups)
    return groups


def _read(word: str) -> tuple[str, list[list[Path]]]:
    """Return the name of a group, and the paths of each of its entries."""
    name, equals, rest = word.partition("=")
    if not equals or Path(word).exists():
        name, rest = "", word
    paths = [Path(rest)] if Path(rest).exists() else [Path(part) for part in rest.split("+")]
    name = name or " + ".join(path.name for path in paths)
    if len(paths) > 1 or paths[0].is_file() or (paths[0] / "config.yaml").is_file():
        return name, [paths]
    if not paths[0].is_dir():
        raise MissingError(f"there is no run folder {paths[0]}, nor a file of predictions.")
    seeds = [[each.parent] for each in sorted(paths[0].glob("*/config.yaml"))]
    if not seeds:
        raise MissingError(f"{paths[0]} is no run's folder and holds none.")
    _check_seeds(paths[0], [Run(path) for (path,) in seeds])
    return name, seeds


def _check_seeds(folder: Path, runs: Sequence[Run]) -> None:
    """Refuse to average runs that differ in more than their seed and where they were trained."""
    known = known_settings()
    first = dict(flattened(runs[0].config(), known))
    for run in runs[1:]:
        own = dict(flattened(run.config(), known))
        for key in {**first, **own}:
            if key not in PLACE and own.get(key) != first.get(key):
                raise InputError(
                    f"{folder} holds no seeds of one method: {key} is {first.get(key)!r} in {runs[0].path} but "
                    f"{own.get(key)!r} in {run.path}; compare such runs by naming them one by one."
                )


def _entry(paths: Sequence[Path], options: Options) -> Entry:
    name = " + ".join(map(str, paths))
    if paths[0].is_file():
        if len(paths) > 1:
            raise InputError(f"{name} cannot be one ensemble; only runs can.")
        judgement = judge_predictions(paths[0])
        return Entry(name, [], judgement, judgement.figures)
    runs = [Run(path) for path in paths]
    judgement = judge_runs(runs, options)
    each = [costs(run, options.download) for run in runs]
    return Entry(name, runs, judgement, judgement.figures | {key: sum(cost[key] for cost in each) for key in each[0]})


def _check_alike(groups: Sequence[Group]) -> None:
    entries = [entry for group in groups for entry in group.entries]
    first, wanted = entries[0], entries[0].judgement.tested
    sources = {entry.judgement.corrupted.source for entry in entries if entry.judgement.corrupted is not None}
    if len(sources) > 1:
        raise InputError(f"the corruptions are not the same for all: {'; '.join(sorted(sources))}.")
    for entry in entries:
        own = entry.judgement.tested
        named = bool(entry.runs and first.runs)  # files may lack the names of classes
        fits = torch.equal(own.targets, wanted.targets) and own.logits.shape[2] == wanted.logits.shape[2]
        if not fits or (named and own.classes != wanted.classes):
            raise InputError(f"{entry.name} was tested on other images or classes than {first.name}.")


def costs(run: Run, download: bool = False) -> dict[str, float]:
    """Return what a run cost and costs.

    ``parameters``; ``multiply_adds`` of one image at inference, as counted by torch; ``images`` through the network in
    training (mixtures × epochs); ``minutes`` of training; ``milliseconds`` for an image in a batch of 64, measured now
    on the CPU in float32. What a damaged ``metrics.csv`` does not tell is NaN.

    Args:
        run: The run.
        download: Whether what the network is built from may be downloaded.
    """
    net, config, rows = load(run.path, download=download), run.config(), _history(run)
    settings = make_plan(config).settings.data
    height, width, _ = read_test_images(settings, [0])[0].shape
    crop = settings.crop_size
    images = torch.randn(64, net.in_chans, crop or height, crop or width)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            net(images[:1])
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            net(images)
            taken.append(time.perf_counter() - start)
    return {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "multiply_adds": counter.get_total_flops() / 2,
        "images": rows[-1]["step"] * config["data"]["batch_size"] if rows else math.nan,
        "minutes": sum(row["seconds"] for row in rows) / 60 if rows else math.nan,
        "milliseconds": 1e3 * statistics.median(taken) / len(images),
    }


def _history(run: Run) -> list[dict[str, float]]:
    try:
        return read_history(run)
    except InputError:
        return []  # the page says so


def sample_scores(group: Group) -> dict[str, np.ndarray]:
    """Return for each test image whether it is right, its negative log-likelihood and Brier score.

    They are those of the logit average, means over the group's entries: (N,) each, under ``accuracy``, ``nll`` and
    ``brier``, whose means over images are the figures of these names.
    """
    each = [entry.judgement.tested.average() for entry in group.entries]
    columns = {
        "accuracy": [samples.right for samples in each],
        "nll": [samples.nll for samples in each],
        "brier": [samples.brier for samples in each],
    }
    return {key: torch.stack(values).mean(0).numpy() for key, values in columns.items()}


def paired_interval(difference: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of paired differences and its 95 % interval, by resampling images (percentile bootstrap).

    Example:
        >>> mean, low, high = paired_interval(np.tile([0.0, 1.0], 200))
        >>> mean, low < 0.5 < high
        (0.5, True)
    """
    if np.ptp(difference) == 0:
        return (float(difference[0]),) * 3
    found = bootstrap(
        (difference,), np.mean, n_resamples=RESAMPLES, batch=50, method="percentile", rng=np.random.default_rng(0)
    )
    return float(difference.mean()), float(found.confidence_interval.low), float(found.confidence_interval.high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Return the exact p-value of McNemar's test that two networks are right equally often.

    Args:
        first: (N,) 0 or 1, whether the first is right.
        second: (N,) likewise.

    Example:
        >>> round(mcnemar(np.array([1, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 0, 0])), 4)   # 5 to 0
        0.0625
    """
    only_first, only_second = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    total = only_first + only_second
    return float(binomtest(only_first, total).pvalue) if total else 1.0
