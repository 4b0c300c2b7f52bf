"""Tables of an evaluation's results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from mixmo.corruptions import SEVERITIES
from mixmo.escaping import dataset_name
from mixmo.evaluation.evaluate import EnsembleMetrics
from mixmo.evaluation.results import EvaluationResult, OODResult
from mixmo.evaluation.robustness import CorruptionResult
from mixmo.metrics.catalogue import CORRUPTED, METRICS
from mixmo.metrics.conformal import Sets
from mixmo.metrics.ood import SCORES as OOD_SCORES
from mixmo.metrics.temperature import describe_uncertainty
from mixmo.reporting.text_table import TextTable

MAIN = ("accuracy", "nll", "brier", "ece", "misclassification_auroc")
"""Metrics of the cards at the top of a page, and of comparisons."""

LABELS_MAIN = ("map", "f1_macro", "f1_micro", "exact_match", "bce", "label_ece")
"""The same for multi-label networks."""

SCORES = ("accuracy", "balanced_accuracy", "accuracy_top5", "nll", "brier", "ece", *LABELS_MAIN)
"""Metrics of the table in the terminal, where available."""

MEANINGS = {
    **{metric.column: metric.help for metric in METRICS.values()},
    **{metric.heading: metric.help for metric in METRICS.values()},
    **{f"{metric.name}, points": metric.help for metric in METRICS.values()},
    "McNemar's p": "Probability of a difference in accuracy at least this large if both had the same true accuracy; "
    "it applies to these two runs, not to other seeds.",
}
"""Meanings of column headings and row names."""


def evaluation_tables(result: EvaluationResult, title: str) -> list[TextTable]:
    """Return all tables of an evaluation."""
    tables = [metrics_table(result.metrics, title), *sets_tables(result.sets), *ood_tables(result.ood)]
    if result.corruptions is not None:
        tables.append(corruption_table(result.corruptions))
    if result.per_class:
        tables.append(class_table(result.per_class))
    return tables


def metrics_table(metrics: EnsembleMetrics, title: str) -> TextTable:
    """Return the metrics of the ensemble and every member, or of the single network."""
    rows, note = {"single network": metrics.average}, ""
    keys = [key for key in SCORES if key in metrics.average]
    if metrics.diversity:
        averages = metrics.average, metrics.probability_average
        rows = dict(zip(("ensemble, logit average", "ensemble, probability average"), averages, strict=True))
        rows |= {f"member {index}": member for index, member in enumerate(metrics.members)}
        if (share := metrics.diversity.get("label_disagreement")) is not None:
            note = f"Two members disagree on {METRICS['label_disagreement'].text(share)} of the labels."
        else:
            share = metrics.diversity["disagreement"]
            note = f"Two members predict different classes for {METRICS['disagreement'].text(share)} of the images."
    cells = [[name, *(METRICS[key].number(values[key]) for key in keys)] for name, values in rows.items()]
    return TextTable(title, ["", *(METRICS[key].column for key in keys)], cells, note)


def describe_calibration(scaled: Mapping[str, float]) -> str:
    """Describe the calibrated predictions of ``mixmo predict``; empty without validation images.

    Example:
        >>> scaled = {"temperature": 1.5, "ece_scaled": 0.012, "nll_scaled": 0.2}
        >>> describe_calibration(scaled | {"set_coverage_95": 0.96, "set_size_95": 1.25})
        'Calibrated on validation images (temperature 1.500): ECE 1.20 %, NLL 0.2000; sets of 1.25 classes ...'
    """
    if not scaled:
        return ""
    if "bce_scaled" in scaled:
        keys = ("bce_scaled", "f1_macro_tuned", "f1_micro_tuned")
        bce, macro, micro = (METRICS[key].text(scaled[key]) for key in keys)
        return (
            f"Calibrated on validation images (temperature {scaled['temperature']:.3f}, a threshold for each class): "
            f"BCE {bce}, macro F1 {macro}, micro F1 {micro}."
        )
    return (
        f"Calibrated on validation images (temperature {scaled['temperature']:.3f}): "
        f"ECE {METRICS['ece'].text(scaled['ece_scaled'])}, NLL {METRICS['nll'].text(scaled['nll_scaled'])}; "
        f"sets of {scaled['set_size_95']:.2f} classes on average contain the true class of "
        f"{METRICS['set_coverage_95'].text(scaled['set_coverage_95'])} of the test images (nominally 95 %)."
        f" {temperature_uncertainty(scaled)}"
    ).rstrip()


def temperature_uncertainty(scaled: Mapping[str, float]) -> str:
    """Return :func:`mixmo.metrics.temperature.describe_uncertainty` of an evaluation; empty if unknown."""
    return describe_uncertainty(scaled.get("temperature_low", 1.0), scaled.get("temperature_high", 1.0))


def sets_tables(results: Mapping[Sets, Mapping[str, float]]) -> list[TextTable]:
    """Return a table of coverage and size of each kind of conformal sets; none without a calibration."""
    if not results:
        return []
    keys = [f"{key}_{percent}" for percent in (90, 95) for key in ("set_coverage", "set_coverage_class", "set_size")]
    rows = [[sets, *(METRICS[key].number(values[key]) for key in keys)] for sets, values in results.items()]
    header = [f"{percent} %: {name}" for percent in (90, 95) for name in ("coverage, %", "worst class, %", "size")]
    rare = results["classwise"]["set_rare_classes_95"]
    note = f"Classes in every class-wise 95 % set, for lack of validation images: {rare:.0f}." * bool(rare)
    return [TextTable("Conformal sets", ["Sets", *header], rows, note)]


def ood_tables(results: Mapping[str, OODResult]) -> list[TextTable]:
    """Return a table for each OOD dataset: how well every score separates its images from test images."""
    keys = ("auroc", "aupr", "fpr95")
    tables = []
    for dataset, result in results.items():
        rows = [
            [OOD_SCORES[score], *(METRICS[key].number(values[key]) for key in keys)]
            for score, values in result.metrics.items()
        ]
        header = ["Score", *(METRICS[key].column for key in keys)]
        title = f"Detection of out-of-distribution images: {dataset_name(dataset)}"
        tables.append(TextTable(title, header, rows, meanings=MEANINGS))
    return tables


def corruption_table(corrupted: CorruptionResult) -> TextTable:
    """Return the logit average's accuracy at every severity and its mean metrics, for each kind and over all."""

    def means(*kinds: str) -> list[str]:
        values = corrupted.means(*kinds)
        return [METRICS[key].number(values[key.partition("/")[2]]) for key in CORRUPTED]

    rows = [
        [kind.replace("_", " "), *(f"{100 * cell['accuracy']:.2f}" for cell in cells.values()), *means(kind)]
        for kind, cells in corrupted.kinds.items()
    ]
    rows.append(["mean", *(f"{value:.2f}" for value in severity_means(corrupted)), *means()])
    header = ["Accuracy, %, at severity", *map(str, SEVERITIES), "mean", "mean NLL", "mean ECE, %"]
    return TextTable(f"corruptions, {corrupted.source}", header, rows)


def severity_means(corrupted: CorruptionResult, member: str = "") -> list[float]:
    """Return accuracy in % at each severity, mean over kinds, of a member (``member_0``) or the logit average."""
    key = f"{member}/accuracy".lstrip("/")
    return [
        100 * statistics.fmean(cells[severity][key] for cells in corrupted.kinds.values()) for severity in SEVERITIES
    ]


def accuracies(result: EvaluationResult, member: str = "") -> list[float]:
    """Return accuracy in % on clean images, followed by :func:`severity_means`."""
    assert result.corruptions is not None
    return [100 * result.flat()[f"{member}/accuracy".lstrip("/")], *severity_means(result.corruptions, member)]


def class_table(by_class: Mapping[str, Mapping[str, float]]) -> TextTable:
    """Return the metrics of each class (:func:`mixmo.evaluation.results.class_metrics`)."""
    keys = [key for key in METRICS if key != "images" and any(key in values for values in by_class.values())]
    rows = [
        [name, str(values["images"]), *(METRICS[key].number(values.get(key, math.nan)) for key in keys)]
        for name, values in by_class.items()
    ]
    header = ["class", "images", *(METRICS[key].column for key in keys)]
    return TextTable("by class, logit average", header, rows, meanings=MEANINGS)
