"""``mixmo compare``: is one network better than another, in what, at what cost, and is the difference real?"""

from __future__ import annotations

import csv
import io
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest, bootstrap
from torch.utils.flop_counter import FlopCounterMode

from mixmo import pages
from mixmo.evaluation import evaluate
from mixmo.files import write_text
from mixmo.predictions import Predictions, predict
from mixmo.runs import Run, load

RESAMPLES = 2000


@dataclass(frozen=True)
class Column:
    """How a figure is shown: heading, factor, digits, and whether more is better (``None``: neither)."""

    heading: str
    factor: float = 1.0
    digits: int = 2
    more_is_better: bool | None = None


COLUMNS = {
    "accuracy": Column("top-1 %", 100, 2, True),
    "nll": Column("NLL", 1, 4, False),
    "brier": Column("Brier", 1, 4, False),
    "ece": Column("ECE %", 100, 2, False),
    "aurc": Column("AURC %", 100, 2, False),
    "d_re": Column("d_re", 1, 3, True),
    "parameters": Column("parameters, M", 1e-6, 2),
    "multiply_adds": Column("multiply-adds an image, M", 1e-6, 1, False),
    "images": Column("images in training, M", 1e-6, 2),
    "minutes": Column("minutes", 1, 1),
    "milliseconds": Column("ms an image", 1, 3, False),
}


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed only, or a single run.

    Attributes:
        name: What to call them.
        runs: The runs.
        predictions: Of each run, on the test set.
        figures: Of each run: those of :func:`mixmo.evaluate` and the costs.
    """

    name: str
    runs: list[Run]
    predictions: list[Predictions]
    figures: list[dict[str, float]]

    def mean(self, key: str) -> float:
        """Return the mean over runs; NaN where it is not known."""
        return statistics.fmean(each.get(key, math.nan) for each in self.figures)

    def deviation(self, key: str) -> float:
        """Return the standard deviation over runs; NaN for a single one."""
        values = [each.get(key, math.nan) for each in self.figures]
        return statistics.stdev(values) if len(values) > 1 else math.nan


def compare(folders: Sequence[str | Path], out: Path) -> list[Group]:
    """Compare runs, or folders of runs that differ by their seed, on their common test set.

    Prints two tables, the figures (mean ± standard deviation over seeds, the best in bold) and the paired differences
    to the first group, and writes them as ``comparison.csv``, ``comparison.md`` and ``comparison.html``.

    Args:
        folders: Runs' folders, or folders of such.
        out: Where to write; made if it is missing.

    Raises:
        FileNotFoundError: if a folder is missing or holds no run.
        ValueError: if the runs were tested on different images.
    """
    groups = [_group(Path(folder)) for folder in folders]
    reference = groups[0].predictions[0]
    for group in groups:
        for run, found in zip(group.runs, group.predictions, strict=True):
            if found.classes != reference.classes or not torch.equal(found.targets, reference.targets):
                raise ValueError(f"{run.path} was tested on other images or classes than {groups[0].runs[0].path}.")
    tables = [_figures_table(groups), *([_differences_table(groups)] if len(groups) > 1 else [])]
    for title, header, rows in tables:
        shown = Table(title=title)
        for index, heading in enumerate(header):
            shown.add_column(heading, justify="right" if index else "left")
        for row in rows:
            shown.add_row(*(f"[bold]{cell[2:-2]}[/]" if cell.startswith("**") else cell for cell in row))
        Console(width=None if sys.stdout.isatty() else 160).print(shown)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "comparison.csv", _as_csv(groups))
    write_text(out / "comparison.md", "\n".join(_as_markdown(*table) for table in tables))
    write_text(out / "comparison.html", _as_page(groups, tables))
    print(f"written: {out / 'comparison.csv'}, comparison.md and comparison.html")
    return groups


def _group(folder: Path) -> Group:
    if (folder / "config.yaml").is_file():
        runs = [Run(folder)]
    else:
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no run folder {folder}.")
        runs = [Run(each.parent) for each in sorted(folder.glob("*/config.yaml"))]
        if not runs:
            raise FileNotFoundError(f"{folder} is no run's folder and holds none.")
    found = [predict(run) for run in runs]
    figures = [evaluate(each.logits, each.targets) | costs(run) for run, each in zip(runs, found, strict=True)]
    return Group(folder.name, runs, found, figures)


def costs(run: Run) -> dict[str, float]:
    """Return what a run cost and costs.

    ``parameters``; ``multiply_adds`` of one image at inference, as counted by torch; ``images`` through the network in
    training (mixtures × epochs); ``minutes`` of training; ``milliseconds`` for an image in a batch of 64, measured now
    on the CPU in float32.

    Args:
        run: The run.
    """
    net, config, rows = load(run.path), run.config(), run.read_metrics()
    side = config["data"].get("crop_size") or config["data"].get("image_size") or 32
    images = torch.randn(64, net.in_chans, side, side)
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
        "images": float(rows[-1]["step"]) * config["data"]["batch_size"] if rows else math.nan,
        "minutes": sum(float(row["seconds"]) for row in rows) / 60 if rows else math.nan,
        "milliseconds": 1e3 * statistics.median(taken) / len(images),
    }


def sample_scores(group: Group) -> dict[str, np.ndarray]:
    """Return for each test image whether it is right and its negative log-likelihood, means over the group's runs."""
    right, nll = [], []
    for found in group.predictions:
        logs = found.logits.double().mean(1).log_softmax(1)
        right.append((logs.argmax(1) == found.targets).double())
        nll.append(-logs.gather(1, found.targets[:, None])[:, 0])
    return {"accuracy": torch.stack(right).mean(0).numpy(), "nll": torch.stack(nll).mean(0).numpy()}


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


TableText = tuple[str, list[str], list[list[str]]]


def _figures_table(groups: Sequence[Group]) -> TableText:
    keys = [key for key in COLUMNS if any(not math.isnan(group.mean(key)) for group in groups)]
    best = {key: _best(key, groups) for key in keys}
    rows = []
    for group in groups:
        cells = [f"{group.name} (n = {len(group.runs)})"]
        for key in keys:
            column, mean, spread = COLUMNS[key], group.mean(key), group.deviation(key)
            text = "" if math.isnan(mean) else f"{mean * column.factor:.{column.digits}f}"
            if text and not math.isnan(spread) and column.more_is_better is not None:
                text += f" ± {spread * column.factor:.{column.digits}f}"
            cells.append(f"**{text}**" if text and len(groups) > 1 and mean == best[key] else text)
        rows.append(cells)
    images = len(groups[0].predictions[0].targets)
    title = f"{images} test images, logits averaged, mean ± standard deviation over n seeds"
    return title, ["", *(COLUMNS[key].heading for key in keys)], rows


def _best(key: str, groups: Sequence[Group]) -> float | None:
    more, means = COLUMNS[key].more_is_better, [group.mean(key) for group in groups]
    known = [mean for mean in means if not math.isnan(mean)]
    if more is None or not known:
        return None
    return max(known) if more else min(known)


def _differences_table(groups: Sequence[Group]) -> TableText:
    first, rows = sample_scores(groups[0]), []
    for group in groups[1:]:
        own = sample_scores(group)
        cells = [f"{group.name} − {groups[0].name}"]
        for key, factor, digits in (("accuracy", 100, 2), ("nll", 1, 4)):
            mean, low, high = (factor * value for value in paired_interval(own[key] - first[key]))
            cells.append(f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]")
        single = len(group.runs) == len(groups[0].runs) == 1
        cells.append(f"{mcnemar(own['accuracy'], first['accuracy']):.2g}" if single else "")
        rows.append(cells)
    title = "paired differences with 95 % intervals (bootstrap over test images; seeds are averaged first)"
    return title, ["", "top-1, points", "NLL", "McNemar's p"], rows


def _as_csv(groups: Sequence[Group]) -> str:
    keys = list(dict.fromkeys(key for group in groups for each in group.figures for key in each))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["group", "run", *keys])
    for group in groups:
        for run, figures in zip(group.runs, group.figures, strict=True):
            writer.writerow([group.name, run.path, *(figures.get(key, "") for key in keys)])
    return buffer.getvalue()


def _as_markdown(title: str, header: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return f"{title}\n\n" + "\n".join(lines) + "\n"


def _as_page(groups: Sequence[Group], tables: Sequence[TableText]) -> str:
    def plain(rows: list[list[str]]) -> list[list[str]]:
        return [[f"{cell[2:-2]} ★" if cell.startswith("**") else cell for cell in row] for row in rows]

    parts = [pages.table(header, plain(rows), title) for title, header, rows in tables]
    runs = [[group.name, str(run.path)] for group in groups for run in group.runs]
    return pages.page(
        "Comparison",
        [
            pages.section("Figures", *parts, pages.paragraph("★ the best mean of a column.")),
            pages.section("Runs", pages.table(["group", "folder"], runs)),
        ],
    )
