"""Make tables and plots of a study's rows: means over seeds, and paired differences with 95 % intervals.

    python benchmarks/study_tables.py rows/digits-tuned.csv rows/digits-tuned.methods.csv --against single
    python benchmarks/study_tables.py rows/*-tuned.csv --picture differences.png --methods Cut-MixMo MIMO
    python benchmarks/study_tables.py --update README.md docs/when-it-pays.md

``--update`` rewrites the tables below lines such as ``<!-- study digits-tuned.csv | 20 images, 320 passes | single
-->`` from the rows in ``benchmarks/results``. Instead of ``study``, ``brief`` shows only a few columns, ``short`` also
omits the differences, ``overview`` has all datasets side by side, ``chosen`` shows the chosen settings, and
``diagnosis`` (with a method in place of the task) how well members fit.

Two methods are paired seed by seed: they had the same training images. The interval of a mean difference is Student's,
with n - 1 degrees of freedom over n seeds, so that it covers other draws of training images and weights.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from scipy.stats import t as student
from study_plans import Rows, read_rows

SHOWN = {
    "accuracy": ("top-1 %", 100, 1),
    "nll": ("NLL", 1, 3),
    "nll_two_fold": ("NLL, scaled", 1, 3),
    "brier": ("Brier", 1, 3),
    "ece": ("ECE %", 100, 1),
    "ece_two_fold": ("ECE, scaled, %", 100, 1),
    "aurc": ("AURC, ‰", 1000, 2),
    "set_size_95_two_fold": ("size of 95 % sets", 1, 2),
    "set_coverage_95": ("coverage of 95 % sets, %", 100, 1),
    "set_size_95": ("their size", 1, 2),
    "corrupted_accuracy": ("corrupted top-1 %", 100, 1),
    "corrupted_nll": ("corrupted NLL", 1, 3),
    "corrupted_ece": ("corrupted ECE %", 100, 1),
    "ood_auroc": ("OOD AUROC %", 100, 1),
    "ood_fpr95": ("OOD FPR95 %", 100, 1),
}
"""Heading, factor and digits of the metrics; those that rows lack are left out."""
COSTS = {
    "parameters": ("parameters, M", 1e-6, 2),
    "macs": ("MACs, M", 1e-6, 1),
    "images_in_training": ("images in training, k", 1e-3, 0),
}
SHORT = ("accuracy", "nll", "nll_two_fold")
BRIEF = (*SHORT, "macs")
COMPARED = ("accuracy", "nll")
"""Metrics compared with other methods."""
COMPARED_TUNED = (*COMPARED, "nll_two_fold")
"""The same for tuned methods, whose settings were chosen by scaled NLL."""
OVERVIEW = ("accuracy", "nll_two_fold")
TITLES = {"fashion_mnist": "Fashion-MNIST", "cifar10-50": "CIFAR-10"}
CHOSEN = {"base_lr": "learning rate", "weight_decay": "weight decay", "input_repetition": "rho", "trials": "trials"}
Latencies = dict[str, dict[str, dict[str, float]]]
"""The tables that ``latency.py`` saves: one of all methods for each batch size."""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Difference:
    """A mean paired difference over seeds.

    Attributes:
        mean: The mean over seeds.
        half: Half the width of its 95 % interval; NaN for a single seed.
        count: The number of seeds.
        wins: The number of seeds with a negative difference.
    """

    mean: float
    half: float
    count: int
    wins: int

    @property
    def sure(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.mean) > self.half


def difference(rows: Rows, task: str, method: str, other: str, metric: str) -> Difference | None:
    """Return the difference in a metric between a method and another on a task; ``None`` without a common seed.

    Example:
        >>> rows = [{"task": "a", "method": m, "seed": s, "nll": v} for m, s, v in
        ...         [("x", "0", "1.0"), ("x", "1", "2.0"), ("y", "0", "0.5"), ("y", "1", "1.7")]]
        >>> found = difference(rows, "a", "y", "x", "nll")
        >>> round(found.mean, 3), round(found.half, 3), found.wins, found.sure   # 12.706 · 0.1414 / √2
        (-0.4, 1.271, 2, False)
    """
    values = [{row["seed"]: float(row[metric]) for row in rows if (row["task"], row["method"]) == (task, name)}
              for name in (method, other)]  # fmt: skip
    each = [values[0][seed] - values[1][seed] for seed in values[0].keys() & values[1].keys()]
    if not each:
        return None
    half = math.nan
    if len(each) > 1:
        half = float(student.ppf(0.975, len(each) - 1)) * statistics.stdev(each) / math.sqrt(len(each))
    return Difference(statistics.fmean(each), half, len(each), sum(value < 0 for value in each))


def read_all(files: Sequence[Path]) -> Rows:
    """Read rows from files; those of ``methods.py``, which name no dataset, get that of the preceding file."""
    rows, dataset = Rows(), ""
    for file in files:
        for row in read_rows(file):
            dataset = row.setdefault("dataset", dataset)
            rows.append(row)
    return rows


def number(value: float, factor: float, digits: int, sign: bool = False) -> str:
    """Format a number, with a true minus sign, and none for zero.

    Example:
        >>> number(-0.123, 100, 1), number(-0.0001, 100, 1, sign=True)
        ('−12.3', '0.0')
    """
    value = round(factor * value, digits) or 0.0  # not −0.0
    return f"{value:{'+' if sign and value else ''}.{digits}f}".replace("-", "−")


def table(
    rows: Rows, task: str, against: Sequence[str], latencies: Latencies | None = None, brief: bool = False
) -> str:
    """Return the Markdown table of a task: a row for each method, differences to the methods named.

    Args:
        rows: Rows of one file or several.
        task: The task's name.
        against: Methods to compare with; those without rows are left out.
        latencies: The methods' latencies relative to ``single``.
        brief: Show only :data:`BRIEF`.
    """
    rows = [row for row in rows if row["task"] == task]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    known = [other for other in against if other in methods]
    columns = SHOWN | {key: form for key, form in COSTS.items() if key == "macs" or "trials" in rows[0]}
    shown = {key: columns[key] for key in (BRIEF if brief else columns) if any(row.get(key) for row in rows)}
    compared = COMPARED_TUNED if "trials" in rows[0] else COMPARED
    header = ["", "n", *(heading for heading, *_ in shown.values())]
    header += [f"ms, {batch}, against single" for batch in latencies or ()]
    header += [f"{SHOWN[metric][0]} against {other}" for other in known for metric in compared]
    lines = [header, ["---"] * len(header)]
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        cells = [method, str(len(own))]
        for key, (_, factor, digits) in shown.items():
            values = [float(row[key]) for row in own if row.get(key)]
            spreads = len(values) > 1 and key in SHOWN
            spread = f" ± {number(statistics.stdev(values), factor, digits)}" if spreads else ""
            cells.append(number(statistics.fmean(values), factor, digits) + spread if values else "")
        for timed in (latencies or {}).values():
            cells.append(f"{timed[method]['ratio']:.2f}" if method in timed else "")
        for other in known:
            for metric in compared:
                cells.append("" if other == method else _difference_text(rows, task, method, other, metric))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def short_table(rows: Rows, task: str) -> str:
    """Return the Markdown table of the means of :data:`SHORT` on a task."""
    lines = [["", *(SHOWN[key][0] for key in SHORT)], ["---"] * (len(SHORT) + 1)]
    for method in dict.fromkeys(row["method"] for row in rows if row["task"] == task):
        own = [row for row in rows if (row["task"], row["method"]) == (task, method)]
        means = {key: statistics.fmean(float(row[key]) for row in own) for key in SHORT}
        lines.append([method, *(number(means[key], *SHOWN[key][1:]) for key in SHORT)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def overview_table(rows: Rows, task: str, other: str, latencies: Latencies | None) -> str:
    """Return the Markdown table of a task on all datasets: means of :data:`OVERVIEW`, a row for each method.

    A mean is bold if significantly better than that of the ``other`` method, and in italics if worse. Latencies, of the
    first dataset, are relative to ``single``.
    """
    rows = [row for row in rows if row["task"] == task]
    datasets = dict.fromkeys(row["dataset"] for row in rows)
    header = ["", *(f"latency, {batch}" for batch in latencies or ())]
    header += [f"{TITLES.get(dataset, dataset)}, {SHOWN[metric][0]}" for dataset in datasets for metric in OVERVIEW]
    lines = [header, ["---"] * len(header)]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [f"{timed[method]['ratio']:.1f}×" if method in timed else "" for timed in (latencies or {}).values()]
        for dataset in datasets:
            here = [row for row in rows if row["dataset"] == dataset]
            own = [row for row in here if row["method"] == method]
            for metric in OVERVIEW if own else ():
                text = number(statistics.fmean(float(row[metric]) for row in own), *SHOWN[metric][1:])
                found = None if method == other else difference(here, task, method, other, metric)
                if found and found.sure:
                    text = f"**{text}**" if (found.mean > 0) == (metric == "accuracy") else f"*{text}*"
                cells.append(text)
            cells += [] if own else [""] * len(OVERVIEW)
        lines.append([method, *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def chosen_table(rows: Rows, task: str) -> str:
    """Return the Markdown table of each method's chosen settings, and of its precision if these differ."""
    methods = {row["method"]: row for row in rows if row["task"] == task}
    mixed = len({row["precision"] for row in methods.values()}) > 1
    columns = CHOSEN | ({"precision": "precision"} if mixed else {})
    lines = [["", *columns.values()], ["---"] * (len(columns) + 1)]
    for method, row in methods.items():
        of_members = row if row.get("selectivity") else row | {"input_repetition": ""}
        lines.append([method, *(of_members.get(key, "") for key in columns)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _difference_text(rows: Rows, task: str, method: str, other: str, metric: str) -> str:
    found, (_, factor, digits) = difference(rows, task, method, other, metric), SHOWN[metric]
    if found is None:
        return ""
    mean = number(found.mean, factor, digits, sign=True)
    if math.isnan(found.half):
        return mean
    low, high = (number(found.mean + side * found.half, factor, digits, sign=True) for side in (-1, 1))
    return f"**{mean}** [{low}, {high}]" if found.sure else f"{mean} [{low}, {high}]"


def diagnosis_table(rows: Rows, method: str, other: str) -> str:
    """Return the Markdown table of a method's diagnosis: a row for each task, sorted by training accuracy."""
    header = ["task", "training accuracy %", "selectivity %", "separate units %"]
    compared = COMPARED_TUNED if "trials" in rows[0] else COMPARED
    header += [f"{SHOWN[metric][0]} against {other}" for metric in compared]
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if (row["task"], row["method"]) == (task, method)]
        means = [
            statistics.fmean(float(row[key]) for row in own)
            for key in ("train_accuracy", "selectivity", "separate_units")
        ]
        differences = [_difference_text(rows, task, method, other, metric) for metric in compared]
        lines.append((means[0], [task, *(number(mean, 100, 1) for mean in means), *differences]))
    cells = [header, ["---"] * len(header), *(line for _, line in sorted(lines, key=lambda line: -line[0]))]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


MARK = re.compile(
    r"(<!-- (study|brief|short|overview|chosen|diagnosis) (.+?) \| (.+?) \| (.+?) -->\n\n)((?:\|.*\n)*\n?)"
)
"""A table in a page: files of rows, the task or the method it is of, the methods to compare with; ``; `` divides."""


def latencies_of(file: Path) -> Latencies | None:
    """Return the latencies saved next to a file of rows, if any."""
    kept = file.with_suffix(".latency.json")
    return json.loads(kept.read_text())["tables"] if kept.is_file() else None


def renewed(text: str) -> str:
    """Return a page with its tables regenerated from the rows in ``benchmarks/results``."""

    def new(found: re.Match[str]) -> str:
        mark, kind, files, of, against, _ = found.groups()
        rows = read_all([RESULTS / file for file in files.split("; ")])
        if kind == "chosen":
            return f"{mark}{chosen_table(rows, of)}\n\n"
        if kind == "short":
            return f"{mark}{short_table(rows, of)}\n\n"
        latencies = latencies_of(RESULTS / files.split("; ")[0]) if kind in ("study", "overview") else None
        if kind == "overview":
            return f"{mark}{overview_table(rows, of, against, latencies)}\n\n"
        if kind in ("study", "brief"):
            return f"{mark}{table(rows, of, against.split('; '), latencies, kind == 'brief')}\n\n"
        named = [row | {"task": f"{row['dataset']}, {row['task']}"} for row in rows]  # files may share names of tasks
        return f"{mark}{diagnosis_table(named, of, against)}\n\n"

    return MARK.sub(new, text)


PICTURED = {"accuracy": 100, "nll_two_fold": 1}


def draw_intervals(rows: Rows, methods: Sequence[str], other: str) -> Figure:
    """Plot differences of methods to another in top-1 and scaled NLL on each task, with intervals.

    Markers are filled if the interval excludes zero; to the right a method is better.

    Args:
        rows: Rows of one file or several; dataset and task together identify a task.
        methods: The methods; those that a task lacks are left out.
        other: The method to compare with.
    """
    named = [row | {"task": f"{TITLES.get(row['dataset'], row['dataset'])}, {row['task']}"} for row in rows]
    lines: list[tuple[str, str]] = []  # a task's heading names no method
    for task in dict.fromkeys(row["task"] for row in named):
        lines += [(task, ""), *((task, method) for method in methods if difference(named, task, method, other, "nll"))]
    figure = Figure(figsize=(9, 1.1 + 0.27 * len(lines)))
    axes = figure.subplots(1, len(PICTURED), sharey=True)
    for axis, (metric, factor) in zip(axes, PICTURED.items(), strict=True):
        sign = factor if metric == "accuracy" else -factor
        for place, (task, method) in enumerate(lines):
            if (found := difference(named, task, method, other, metric)) is None:
                continue
            color, face = ("#2b6cb0", None) if found.sure else ("#888888", "white")
            half = 0 if math.isnan(found.half) else abs(sign) * found.half
            axis.errorbar(sign * found.mean, place, xerr=half, fmt="o", color=color, mfc=face or color, capsize=3)
        axis.axvline(0, color="#888888", linewidth=0.8)
        axis.set_xlabel({"accuracy": "points of top-1 gained", "nll_two_fold": "scaled NLL saved"}[metric])
    axes[0].set_yticks(range(len(lines)), [method or task for task, method in lines], fontsize=9)
    for label, (_, method) in zip(axes[0].get_yticklabels(), lines, strict=True):
        label.set_fontweight("normal" if method else "bold")
    axes[0].set_ylim(len(lines) - 0.5, -0.5)
    figure.suptitle(f"Differences to {other}, with 95 % intervals, paired by seed", fontsize=10)
    figure.tight_layout()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, nargs="*", help="CSV files of study.py and methods.py")
    parser.add_argument("--against", nargs="*", default=["single"], metavar="METHOD")
    parser.add_argument("--picture", type=Path, help="draw differences into this file in place of printing tables")
    parser.add_argument("--methods", nargs="*", default=["Cut-MixMo"], help="whose differences the picture shows")
    parser.add_argument("--update", nargs="*", type=Path, metavar="PAGE", help="renew the tables of these pages")
    given = parser.parse_args()
    for page in given.update or ():
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
    if not given.rows:
        return
    rows = read_all(given.rows)
    if given.picture:
        draw_intervals(rows, given.methods, given.against[0]).savefig(given.picture, dpi=130)
        return
    for task in dict.fromkeys(row["task"] for row in rows):
        print(f"{task}\n\n{table(rows, task, given.against, latencies_of(given.rows[0]))}\n")


if __name__ == "__main__":
    main()
