"""The page, CSV and Markdown of ``mixmo compare``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from markupsafe import Markup

from mixmo.errors import InputError
from mixmo.evaluation.comparison import Entry, Group, Named, Seeds, read_groups
from mixmo.evaluation.evaluate import Samples
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import Predictions
from mixmo.evaluation.records import read_environment, read_history
from mixmo.evaluation.results import EvaluationOptions
from mixmo.evaluation.robustness import mean_metrics
from mixmo.files import MARKDOWN_MARK, check_place, is_marked, make_folder, write_text
from mixmo.launching import command
from mixmo.metrics.catalogue import COSTS, DIAGNOSIS, DIVERSITY, METRICS, PER_NETWORK, SCALED
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.ood import ood_scores
from mixmo.names import dataset_name
from mixmo.reporting import charts, class_charts
from mixmo.reporting import html as pages
from mixmo.reporting.advice import advice
from mixmo.reporting.comparison_lead import lead_sentence
from mixmo.reporting.comparison_tables import (
    COMPARED,
    SHOWN,
    as_csv,
    costs_table,
    differences,
    differences_table,
    interval_kinds,
    metrics_table,
)
from mixmo.reporting.pictures import IMAGES, disagreements, mistakes
from mixmo.reporting.sections import (
    Section,
    confidence_section,
    glossary_notes,
    missing_sentence,
    ood_section,
)
from mixmo.reporting.tables import TextTable, accuracies, ood_tables
from mixmo.runs import RunFolder

SETTINGS = {
    "data.name": "Dataset", "model.backbone": "Backbone", "model.num_members": "Members", "mixer.kind": "Mask",
    "pixels.kind": "Pixel mixing", "data.batch_repetition": "Batch repetition", "data.batch_size": "Batch size",
    "trainer.max_epochs": "Epochs", "trainer.precision": "Precision",
}  # fmt: skip
"""What tells most of a run."""
PAGE = "comparison.html"
"""The page's file in the folder of a comparison."""


def compare(
    words: Sequence[str | Path | Seeds | Named],
    out: Path | None,
    options: EvaluationOptions | None = None,
    show: Callable[[TextTable], None] = lambda table: None,
    note: str = "",
    overwrite: bool = False,
    chosen: str = "",
) -> list[Group]:
    """Compare networks on their common test set.

    Shows the metrics (mean ± standard deviation over seeds) and the paired differences to the first
    group, and then writes ``comparison.csv``, ``comparison.md`` and ``comparison.html``. :func:`mixmo.compare` and the
    command are this function.

    Args:
        words: What :func:`mixmo.evaluation.comparison.read_groups` takes.
        out: Where to write; made if it is missing. ``None`` writes nothing.
        options: How runs are evaluated; ``None`` takes the defaults.
        show: What to do with each table before anything is written.
        note: A sentence of the caller's, below the tables of the page.
        overwrite: Whether files that are no earlier comparison are replaced as well.
        chosen: The name of the group that is the best on validation data; without it no network is called the best.

    Raises:
        MissingError: if a folder or file is missing or holds no run.
        InputError: if they were tested on different images, nothing can be written into ``out``, or other
            files stand there.
    """
    if out is not None:
        _check_out(out, overwrite)
    named = [word if isinstance(word, Seeds | Named) else str(word) for word in words]
    options = options or EvaluationOptions()
    groups = read_groups(named, options)
    tables = comparison_tables(groups)
    for table in tables:
        show(table)
    if out is not None:
        make_folder(out)
        write_text(out / "comparison.csv", as_csv(groups))
        write_text(out / "comparison.md", "\n\n".join([MARKDOWN_MARK, *(table.markdown() for table in tables)]) + "\n")
        write_text(out / PAGE, comparison_page(groups, tables, note, chosen, options.download))
    return groups


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuse a folder that cannot be written into, before anything is computed."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose a folder to write into with --out.")
    for file in ("comparison.csv", "comparison.md", PAGE):
        check_place(out / file, is_marked(out / file), overwrite)


def comparison_tables(groups: Sequence[Group]) -> list[TextTable]:
    """Return the tables of metrics, of differences where there are several groups, and of costs where they are known.

    Args:
        groups: What is compared.
    """
    tables = [metrics_table(groups)]
    if len(groups) > 1:
        tables.append(differences_table(groups))
    if any(entry.runs for group in groups for entry in group.entries):
        tables.append(costs_table(groups))
    return tables


def comparison_page(
    groups: Sequence[Group], tables: Sequence[TextTable], note: str = "", chosen: str = "", download: bool = False
) -> str:
    """Return the page of a comparison; plots and images are of each group's first entry.

    Args:
        groups: What is compared.
        tables: Those of :func:`comparison_tables`.
        note: A sentence below the tables.
        chosen: The name of the group that is the best on validation data, where that is known.
        download: Whether the network may be asked for images that it shows.
    """
    firsts = {group.name: group.entries[0] for group in groups}
    parts = {name: entry.result.predictions.average() for name, entry in firsts.items()}
    notes = [note] if note else []
    notes += (
        ["★: better than in every other row by a 95 % interval without 0; on the test set, which chooses nothing."]
        if any(table.best for table in tables)
        else []
    )
    if any(len(group.entries) > 1 for group in groups):
        notes.append("Plots, images and advice are of the first seed.")
    notes += [f"{name}: {entry.result.unscaled}" for name, entry in firsts.items() if entry.result.unscaled]
    sections = [
        *_differences(groups),
        confidence_section(parts, parts),
        *_images(firsts, parts, download),
        *_curves(groups),
        *_corruptions(firsts),
        *_ood(firsts),
        *_members(groups),
    ]
    shown = {heading for table in tables for heading in table.header}
    metrics = [METRICS[key] for key in (*SHOWN, *COSTS) if METRICS[key].column in shown]
    answer = [table.html() for table in tables]
    meaning = pages.part("fold", "What the columns mean", [pages.part("glossary", metrics)])
    return pages.render(
        "answer.html",
        title=f"Comparison of {' and '.join(firsts) if len(firsts) < 3 else f'{len(firsts)} networks'}",
        lead=lead_sentence(groups, chosen),
        answer=[*answer, *(pages.part("sentence", note) for note in notes), meaning],
        sections=sections,
        metrics=_all_metrics(groups),
        reproduce=_reproduce(groups),
    )


def _differences(groups: Sequence[Group]) -> list[Section]:
    if len(groups) < 2:
        return []
    found = {group.name: differences(group, groups[0]) for group in groups[1:]}
    plots = []
    for key in COMPARED:
        metric = METRICS[key]
        values = {
            name: class_charts.Difference(*(metric.factor * value for value in each[key]))
            for name, each in found.items()
            if not math.isnan(each[key][1])
        }
        if values:
            heading = metric.heading if not metric.unit else f"{metric.heading} (points)"
            draw = partial(class_charts.differences, values, heading, metric.higher_is_better)
            shown = "; ".join(f"{name} {metric.number(found[name][key][0], sign=True)}" for name in values)
            caption = f"{metric.name}, difference to {groups[0].name}"
            plots.append(pages.chart(draw, caption, f"{caption}: {shown}."))
    text = (
        f"Blue is better than {groups[0].name}, orange is worse; a hollow point has 0 in its 95 % interval: the "
        f"difference may be chance. Intervals: {interval_kinds(groups)}."
    )
    return [Section(f"Differences to {groups[0].name}", text, plots)]


def _images(firsts: Mapping[str, Entry], parts: Mapping[str, Samples], download: bool) -> list[Section]:
    """Return each network's most confident mistakes, and the images on which the networks disagree most."""
    known = next((entry for entry in firsts.values() if entry.runs), None)
    if known is None:
        return []
    data = TrainedRun(known.runs[0], download=download, data=known.data).data
    shown = known.result.predictions  # files may lack names of classes
    found = [mistakes(name, data, shown, samples, IMAGES // 2) for name, samples in parts.items()]
    if len(firsts) > 1:
        logits = torch.stack([mean_logits(entry.result.predictions.logits).double() for entry in firsts.values()], 1)
        together = Predictions(logits, shown.targets, shown.classes)
        uncertainty = ood_scores(logits)["mutual_information"]
        found.insert(0, disagreements("Images on which they disagree most", data, together, uncertainty, parts))
    return [Section("Images", parts=found)]


def _curves(groups: Sequence[Group]) -> list[Section]:
    known, parts = {}, []
    for run in _runs(groups):
        try:
            if rows := read_history(run):
                known[_run_name(run, groups)] = rows
        except InputError as error:
            parts.append(missing_sentence(error))
    plots = []
    if known:
        plots.append(pages.chart(lambda: charts.loss_curves(known), "Training loss by epoch"))
    validated = {name: (rows, "val_accuracy") for name, rows in known.items() if "val_accuracy" in rows[-1]}
    if validated:
        plots.append(pages.chart(lambda: charts.accuracy_curves(validated), "Accuracy on validation data by epoch"))
    text = (
        "Losses of networks with several members are those of mixtures; with a batch repetition of b, an epoch shows "
        "each image b times."
    )
    return [Section("Learning curves", text, plots, parts)] if plots or parts else []


def _run_name(run: RunFolder, groups: Sequence[Group]) -> str:
    """Return what a run is called: by the group that it is alone in, where there is one, else by its folder."""
    for group in groups:
        if [str(each.path) for entry in group.entries for each in entry.runs] == [str(run.path)]:
            return group.name
    return str(run.path)


def _corruptions(firsts: Mapping[str, Entry]) -> list[Section]:
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
    title = f"Accuracy, %, mean over severities; corruptions {first.source}"
    table = TextTable(title, ["", *found], rows, best=stressed)
    plot = pages.chart(lambda: charts.accuracy_by_severity(lines), "Accuracy by severity of corruption")
    return [Section("Corruptions", "", [plot], [pages.part("fold", "Every kind of corruption", [table.html()])])]


def _ood(firsts: Mapping[str, Entry]) -> list[Section]:
    known = {name: entry.result for name, entry in firsts.items() if entry.result.ood}
    if not known:
        return []
    parts = {
        name: {"test images": result.predictions}
        | {dataset_name(dataset): ood.predictions for dataset, ood in result.ood.items()}
        for name, result in known.items()
    }
    tables = [
        replace(table, title=f"{name}: {table.title}").html()
        for name, result in known.items()
        for table in ood_tables(result.ood)
    ]
    return [ood_section(parts, tables)]


def _members(groups: Sequence[Group]) -> list[Section]:
    several = {group.name: group.entries[0].result.predictions for group in groups}
    several = {name: tested for name, tested in several.items() if tested.logits.shape[1] > 2}
    plots = [
        pages.chart(
            partial(class_charts.disagreement, tested, name), f"Images, in %, on which members of {name} disagree"
        )
        for name, tested in several.items()
    ]
    texts, single = [], ""
    for group in groups:
        result = group.entries[0].result
        if text := advice(result.diagnosis, result.predictions.logits.shape[1]):
            texts.append(f"{group.name}: {text}")
        elif result.diagnosis and not single and not math.isnan(result.diagnosis.train_accuracy):
            single = (
                f"{group.name}: training accuracy {METRICS['train_accuracy'].text(result.diagnosis.train_accuracy)}."
            )
    parts = [pages.part("sentence", text) for text in [*texts, single] if text] if texts else []
    return [Section("Members", "", plots, parts)] if plots or parts else []


def _all_metrics(groups: Sequence[Group]) -> list[Markup]:
    """Return the metrics that do not stand on top already, means over seeds."""
    tables = []
    for title, keys in (
        ("Each network", PER_NETWORK),
        ("Members, mean over pairs", DIVERSITY),
        ("Diagnosis", DIAGNOSIS),
        ("Temperature", SCALED),
    ):
        rows = {key: [group.mean(key) for group in groups] for key in keys}
        rows = {key: values for key, values in rows.items() if not all(map(math.isnan, values))}
        if rows:
            cells = [[METRICS[key].heading, *map(METRICS[key].text, values)] for key, values in rows.items()]
            header = [title, *(group.name for group in groups)]
            tables.append(pages.table(header, cells, notes=glossary_notes(list(rows))))
    return tables


def _reproduce(groups: Sequence[Group]) -> list[Markup]:
    """Return the command of the comparison, those that trained the runs, and the first one's environment."""
    runs = _runs(groups)
    made, missing = [], []
    for run in runs:
        try:
            made.append(read_environment(run))
        except InputError as error:
            missing.append(missing_sentence(error))
    commands = [each["command"] for each in made] + [command()]
    parts = [_settings(runs)] if runs else []
    parts.append(pages.part("listing", "Commands", "\n".join(commands)))
    if made:
        parts.append(pages.part("listing", "Environment", json.dumps(made[0], indent=2, ensure_ascii=False)))
    return [*parts, *missing]


def _runs(groups: Sequence[Group]) -> list[RunFolder]:
    """Return the runs of all groups, each once."""
    return list({str(run.path): run for group in groups for entry in group.entries for run in entry.runs}.values())


def _settings(runs: Sequence[RunFolder]) -> Markup:
    rows = []
    for run in runs:
        config = run.trained_config()
        values = [str(config[section][key]) for section, key in (name.split(".") for name in SETTINGS)]
        rows.append([str(run.path), *values, str(config["seed"])])
    return pages.table(["Run", *SETTINGS.values(), "Seed"], rows, "Settings")
