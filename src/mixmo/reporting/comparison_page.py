"""``mixmo compare``: is one network better than another, in what, at what cost, and is the difference real?"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from mixmo.errors import InputError
from mixmo.evaluation.comparison import Entry, Group, read_groups, sample_scores
from mixmo.evaluation.evaluate import Samples
from mixmo.evaluation.records import read_environment, read_history
from mixmo.evaluation.results import EvaluationOptions
from mixmo.evaluation.robustness import mean_metrics
from mixmo.evaluation.statistics import mcnemar, paired_interval
from mixmo.files import make_folder, write_text
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.ood import ood_scores
from mixmo.names import csv_cell, printable
from mixmo.reporting import charts
from mixmo.reporting import html as pages
from mixmo.reporting.run_report import (
    DISAGREEMENT_CAPTION,
    PICTURE_CAPTION,
    PICTURES,
    SETTINGS,
    SEVERITY_CAPTION,
    complaint,
    confident_mistakes,
    picture_grid,
    quality_sections,
    setting,
)
from mixmo.reporting.tables import TextTable, accuracies, ood_tables

DIVERSITY = ("d_re", "disagreement", "q_statistic", "correlation", "double_fault", "kappa", "kl", "cosine", "nll_gain")


@dataclass(frozen=True)
class Column:
    """How a figure is shown: heading, factor, digits, and whether more is better (``None``: neither)."""

    heading: str
    factor: float = 1.0
    digits: int = 2
    more_is_better: bool | None = None


SCORES = {
    "accuracy": Column("top-1 %", 100, 2, True),
    "nll": Column("NLL", 1, 4, False),
    "brier": Column("Brier", 1, 4, False),
    "ece": Column("ECE %", 100, 2, False),
    "nll_two_fold": Column("NLL, two-fold T", 1, 4, False),
    "aurc": Column("AURC %", 100, 2, False),
    "corruption/accuracy": Column("corrupted top-1 %", 100, 2, True),
    "d_re": Column("d_re", 1, 3, True),
}
COSTS = {
    "parameters": Column("parameters, M", 1e-6, 2, False),
    "macs": Column("MACs, M", 1e-6, 1, False),
    "images": Column("images in training, M", 1e-6, 2, False),
    "minutes": Column("minutes", 1, 1),
    "latency_ms": Column("latency, ms", 1, 3, False),
}


def compare(words: Sequence[str | Path], out: Path, options: EvaluationOptions | None = None) -> list[Group]:
    """Compare networks on their common test set.

    Prints the figures (mean ± standard deviation over seeds, the best in bold) and the paired differences to the first
    group, and writes ``comparison.csv``, ``comparison.md`` and ``comparison.html``.

    Args:
        words: What :func:`mixmo.evaluation.comparison.read_groups` takes.
        out: Where to write; made if it is missing.
        options: How runs are evaluated; ``None`` takes the defaults.

    Raises:
        MissingError: if a folder or file is missing or holds no run.
        InputError: if they were tested on different images, or nothing can be written into ``out``.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose a folder to write into with --out.")
    groups = read_groups([str(word) for word in words], options or EvaluationOptions())
    tables = [figures_table(groups), *([differences_table(groups)] if len(groups) > 1 else [])]
    tables += [costs_table(groups)] if any(entry.runs for group in groups for entry in group.entries) else []
    for table in tables:
        Console(width=None if sys.stdout.isatty() else 160).print(table.rich())
    make_folder(out)
    write_text(out / "comparison.csv", as_csv(groups))
    write_text(out / "comparison.md", "\n\n".join(table.markdown() for table in tables) + "\n")
    write_text(out / "comparison.html", comparison_page(groups, tables))
    print(f"written: {printable(str(out / 'comparison.csv'))}, comparison.md and comparison.html")
    return groups


def figures_table(groups: Sequence[Group]) -> TextTable:
    """Return the figures of every group, mean ± standard deviation over seeds, the best in bold."""
    images = len(groups[0].entries[0].result.predictions.targets)
    title = f"{images} test images, logits averaged, mean ± standard deviation over n seeds"
    corrupted = [entry.result.corruptions for group in groups for entry in group.entries]
    note = next((f"corruptions: {found.source}" for found in corrupted if found is not None), "")
    return replace(_table(groups, SCORES | _ood_columns(groups), title, deviations=True), note=note)


def costs_table(groups: Sequence[Group]) -> TextTable:
    """Return what every group cost and costs, means over seeds, the least in bold."""
    return _table(groups, COSTS, "costs", deviations=False)


def _table(groups: Sequence[Group], columns: Mapping[str, Column], title: str, deviations: bool) -> TextTable:
    keys = [key for key in columns if any(not math.isnan(group.mean(key)) for group in groups)]
    best = {key: _best(columns[key], [group.mean(key) for group in groups]) for key in keys}
    rows, stressed = [], set()
    for row, group in enumerate(groups):
        cells = [f"{group.name} (n = {len(group.entries)})"]
        for key in keys:
            column, mean, spread = columns[key], group.mean(key), group.deviation(key)
            text = "" if math.isnan(mean) else f"{mean * column.factor:.{column.digits}f}"
            if text and deviations and not math.isnan(spread):
                text += f" ± {spread * column.factor:.{column.digits}f}"
            if text and len(groups) > 1 and mean == best[key]:
                stressed.add((row, len(cells)))
            cells.append(text)
        rows.append(cells)
    return TextTable(title, ["", *(columns[key].heading for key in keys)], rows, best=stressed)


def differences_table(groups: Sequence[Group]) -> TextTable:
    """Return the differences to the first group, image by image, with 95 % intervals."""
    first, rows = sample_scores(groups[0]), []
    for group in groups[1:]:
        own = sample_scores(group)
        cells = [f"{group.name} − {groups[0].name}"]
        for key in first:
            column = SCORES[key]
            mean, low, high = (column.factor * value for value in paired_interval(own[key] - first[key]))
            shown, below, above = (f"{value:+.{column.digits}f}" for value in (mean, low, high))
            cells.append(f"{shown} [{below}, {above}]")
        single = len(group.entries) == len(groups[0].entries) == 1
        p = mcnemar(own["accuracy"], first["accuracy"]) if single else math.nan
        cells.append("" if math.isnan(p) else f"{p:.2g}" if p >= 1e-16 else "< 1e-16")
        rows.append(cells)
    title = "paired differences with 95 % intervals (bootstrap over test images; seeds are averaged first)"
    return TextTable(title, ["", "top-1, points", "NLL", "Brier", "McNemar's p"], rows)


def comparison_page(groups: Sequence[Group], tables: Sequence[TextTable]) -> str:
    """Return the page of a comparison; charts and pictures are of each group's first entry.

    Args:
        groups: What is compared.
        tables: Its tables.
    """
    firsts = {group.name: group.entries[0] for group in groups}
    answers = {name: entry.result.predictions.average() for name, entry in firsts.items()}
    sections = [
        pages.section("What is compared", _trained(groups)),
        pages.section("Figures", *(table.html() for table in tables), pages.paragraph("★ the best of a column.")),
        *_curves(groups),
        *quality_sections(answers),
        *_strangers(firsts),
        *_corruptions(firsts),
        *_diversity(groups),
        *_pictures(firsts, answers),
        pages.section("How to repeat it", *_commands(groups)),
    ]
    return pages.page(f"Comparison of {', '.join(firsts)}", sections)


def _trained(groups: Sequence[Group]) -> str:
    rows = []
    for entry in (entry for group in groups for entry in group.entries):
        for run in entry.runs:
            config = run.config()
            rows.append([str(run.path), *(setting(config, name) for name in SETTINGS), str(config["seed"])])
        if not entry.runs:
            rows.append([entry.name, *[""] * len(SETTINGS), ""])
    return pages.table(["", *SETTINGS, "seed"], rows)


def _curves(groups: Sequence[Group]) -> list[str]:
    known, parts = {}, []
    for run in (run for group in groups for entry in group.entries for run in entry.runs):
        try:
            if rows := read_history(run):
                known[str(run.path)] = rows
        except InputError as error:
            parts.append(complaint(error))
    if known:
        text = "Learning curves; losses are those of the mixtures, for networks with several members"
        parts.insert(0, pages.chart(lambda: charts.compared_curves(known), text))
    return [pages.section("Learning curves", *parts)] if parts else []


def _strangers(firsts: Mapping[str, Entry]) -> list[str]:
    known = {name: entry.result for name, entry in firsts.items() if entry.result.ood}
    if not known:
        return []
    parts = {
        name: {"test images": found.predictions, **{each: own.predictions for each, own in found.ood.items()}}
        for name, found in known.items()
    }
    chart = pages.chart(lambda: charts.confidences(parts), "Confidence, the largest of the members' mean probabilities")
    tables = [
        replace(table, title=f"{name}, {table.title}").html()
        for name, found in known.items()
        for table in ood_tables(found.ood)
    ]
    return [pages.section("Out of distribution", chart, *tables)]


def _corruptions(firsts: Mapping[str, Entry]) -> list[str]:
    known = {name: entry.result for name, entry in firsts.items()}
    found = {name: result.corruptions for name, result in known.items() if result.corruptions is not None}
    if not found:
        return []
    lines = {name: accuracies(known[name]) for name in found}
    first, rows, stressed = next(iter(found.values())), [], set()
    for row, kind in enumerate(first.kinds):
        means = [100 * mean_metrics({kind: each.kinds[kind]})["accuracy"] for each in found.values()]
        stressed |= {(row, place) for place, mean in enumerate(means, 1) if mean == max(means)}
        rows.append([kind.replace("_", " "), *(f"{mean:.2f}" for mean in means)])
    title = f"top-1 %, mean over severities; corruptions {first.source}"
    table = TextTable(title, ["", *found], rows, best=stressed)
    chart = pages.chart(lambda: charts.accuracy_by_severity(lines), SEVERITY_CAPTION)
    return [pages.section("Corruptions", chart, table.html())]


def _diversity(groups: Sequence[Group]) -> list[str]:
    several = [group for group in groups if not math.isnan(group.mean("d_re"))]
    if not several:
        return []
    rows = [[group.name, *(f"{group.mean(key):.4f}" for key in DIVERSITY)] for group in several]
    table = TextTable("means over pairs of members", ["", *(key.replace("_", " ") for key in DIVERSITY)], rows)
    members = {group.name: group.entries[0].result.predictions for group in several}
    chart = pages.chart(lambda: charts.disagreements(members), DISAGREEMENT_CAPTION)
    return [pages.section("Diversity", chart, table.html())]


def _pictures(firsts: Mapping[str, Entry], answers: Mapping[str, Samples]) -> list[str]:
    """Return each network's most confident mistakes, and the images on which the networks disagree most."""
    run = next((entry.runs[0] for entry in firsts.values() if entry.runs), None)
    if run is None:
        return []
    shown = next(entry.result.predictions for entry in firsts.values() if entry.runs)  # files may lack names of classes
    parts = []
    for name, samples in answers.items():
        if numbers := confident_mistakes(samples, PICTURES // 2):
            draw = partial(picture_grid, run, shown, numbers, samples.predicted[:, None])
            parts.append(pages.chart(draw, f"{name}, the most confident mistakes: {PICTURE_CAPTION}"))
    if len(firsts) > 1:
        logits = torch.stack([mean_logits(entry.result.predictions.logits) for entry in firsts.values()], 1)
        numbers = ood_scores(logits)["mutual_information"].argsort(descending=True)[:PICTURES].tolist()
        text = f"The images on which they disagree most: what {', '.join(firsts)} said, and in brackets the truth"
        parts.append(pages.chart(partial(picture_grid, run, shown, numbers, logits.argmax(2)), text))
    return [pages.section("Images", *parts)]


def _commands(groups: Sequence[Group]) -> list[str]:
    """Return the command of the comparison, those that trained the runs, and the first one's environment."""
    runs = [run for group in groups for entry in group.entries for run in entry.runs]
    made, complaints = [], []
    for run in runs:
        try:
            made.append(read_environment(run))
        except InputError as error:
            complaints.append(complaint(error))
    commands = [each["command"] for each in made] + [shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])]
    about = [json.dumps(made[0], indent=2, ensure_ascii=False)] if made else []
    return [*(pages.listing(text) for text in ["\n".join(commands), *about]), *complaints]


def _ood_columns(groups: Sequence[Group]) -> dict[str, Column]:
    datasets = dict.fromkeys(name for group in groups for name in group.entries[0].result.ood)
    return {f"ood/{name}/max_probability/auroc": Column(f"AUROC {Path(name).name}", 1, 4, True) for name in datasets}


def _best(column: Column, means: Sequence[float]) -> float | None:
    known = [mean for mean in means if not math.isnan(mean)]
    if column.more_is_better is None or not known:
        return None
    return max(known) if column.more_is_better else min(known)


def as_csv(groups: Sequence[Group]) -> str:
    """Return every figure of every entry, and where its corruptions come from, as comma-separated values."""
    keys = list(dict.fromkeys(key for group in groups for entry in group.entries for key in entry.flat()))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["group", "run", *map(csv_cell, keys), "corruptions"])
    for group in groups:
        for entry in group.entries:
            corrupted = entry.result.corruptions
            source = "" if corrupted is None else corrupted.source
            known = entry.flat()
            metrics = [known.get(key, "") for key in keys]
            writer.writerow([csv_cell(group.name), csv_cell(entry.name), *metrics, csv_cell(source)])
    return buffer.getvalue()
