"""Tables of an evaluation."""

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
from mixmo.metrics.temperature import describe_doubt
from mixmo.reporting.text_table import TextTable

MAIN = ("accuracy", "nll", "brier", "ece", "misclassification_auroc")
"""The metrics of the cards at the top of a page, and of comparisons."""

LABELS_MAIN = ("map", "f1_macro", "f1_micro", "exact_match", "bce", "label_ece")
"""Those of images with several labels."""

SCORES = ("accuracy", "balanced_accuracy", "accuracy_top5", "nll", "brier", "ece", *LABELS_MAIN)
"""The metrics of the table on screen, where known."""

MEANINGS = {
    **{metric.column: metric.help for metric in METRICS.values()},
    **{metric.heading: metric.help for metric in METRICS.values()},
    **{f"{metric.name}, points": metric.help for metric in METRICS.values()},
    "McNemar's p": "Probability of a difference in accuracy at least this large if both were right equally often; it "
    "is about these two runs, not about other seeds.",
}
"""What headings and names of rows mean."""


def evaluation_tables(result: EvaluationResult, title: str) -> list[TextTable]:
    """Return all tables of an evaluation."""
    tables = [metrics_table(result.metrics, title), *sets_tables(result.sets), *ood_tables(result.ood)]
    if result.corruptions is not None:
        tables.append(corruption_table(result.corruptions))
    if result.per_class:
        tables.append(class_table(result.per_class))
    return tables


def metrics_table(metrics: EnsembleMetrics, title: str) -> TextTable:
    """Return the scores of the ensemble and every member, or of the one network."""
    rows, note = {"single network": metrics.average}, ""
    keys = [key for key in SCORES if key in metrics.average]
    if metrics.diversity:
        averages = metrics.average, metrics.probability_average
        rows = dict(zip(("ensemble, logit average", "ensemble, probability average"), averages, strict=True))
        rows |= {f"member {index}": member for index, member in enumerate(metrics.members)}
        if (share := metrics.diversity.get("label_disagreement")) is not None:
            note = f"Two members decide {METRICS['label_disagreement'].text(share)} of the labels differently."
        else:
            shown = METRICS["disagreement"].text(metrics.diversity["disagreement"])
            note = f"Two members predict different classes for {shown} of the images."
    cells = [[name, *(METRICS[key].number(values[key]) for key in keys)] for name, values in rows.items()]
    return TextTable(title, ["", *(METRICS[key].column for key in keys)], cells, note)


def calibration_sentence(scaled: Mapping[str, float]) -> str:
    """Describe the confidence calibrated on validation images, as ``mixmo predict`` gives it; empty without them.

    Example:
        >>> known = {"temperature": 1.5, "ece_scaled": 0.012, "nll_scaled": 0.2}
        >>> calibration_sentence(known | {"set_coverage_95": 0.96, "set_size_95": 1.25})
        'Calibrated on validation images (temperature 1.500): ECE 1.20 %, NLL 0.2000; sets of 1.25 classes ...'
    """
    if not scaled:
        return ""
    if "bce_scaled" in scaled:
        shown = {key: METRICS[key].text(scaled[key]) for key in ("bce_scaled", "f1_macro_tuned", "f1_micro_tuned")}
        return (
            f"Calibrated on validation images (temperature {scaled['temperature']:.3f}, a threshold for each class): "
            f"BCE {shown['bce_scaled']}, macro F1 {shown['f1_macro_tuned']}, micro F1 {shown['f1_micro_tuned']}."
        )
    return (
        f"Calibrated on validation images (temperature {scaled['temperature']:.3f}): "
        f"ECE {METRICS['ece'].text(scaled['ece_scaled'])}, NLL {METRICS['nll'].text(scaled['nll_scaled'])}; "
        f"sets of {scaled['set_size_95']:.2f} classes on average hold the true class of "
        f"{METRICS['set_coverage_95'].text(scaled['set_coverage_95'])} of the test images (95 % are promised)."
        f" {temperature_doubt(scaled)}"
    ).rstrip()


def temperature_doubt(scaled: Mapping[str, float]) -> str:
    """Return :func:`mixmo.metrics.temperature.describe_doubt` of an evaluation; empty if unknown."""
    return describe_doubt(scaled.get("temperature_low", 1.0), scaled.get("temperature_high", 1.0))


def sets_tables(found: Mapping[Sets, Mapping[str, float]]) -> list[TextTable]:
    """Return the table of coverage and size of each kind of conformal sets; none without a calibration."""
    if not found:
        return []
    keys = [f"{key}_{percent}" for percent in (90, 95) for key in ("set_coverage", "set_coverage_class", "set_size")]
    rows = [[sets, *(METRICS[key].number(values[key]) for key in keys)] for sets, values in found.items()]
    header = [f"{percent} %: {shown}" for percent in (90, 95) for shown in ("coverage, %", "worst class, %", "size")]
    rare = found["classwise"]["set_rare_classes_95"]
    note = f"Classes with too few validation images, which are in every class-wise 95 % set: {rare:.0f}." * bool(rare)
    return [TextTable("Conformal sets", ["Sets", *header], rows, note)]


def ood_tables(found: Mapping[str, OODResult]) -> list[TextTable]:
    """Return for each OOD dataset how well every score separates its images from test images."""
    keys = ("auroc", "aupr", "fpr95")
    tables = []
    for dataset, result in found.items():
        rows = [
            [OOD_SCORES[score], *(METRICS[key].number(values[key]) for key in keys)]
            for score, values in result.metrics.items()
        ]
        header = ["Score", *(METRICS[key].column for key in keys)]
        title = f"Detection of out-of-distribution images: {dataset_name(dataset)}"
        tables.append(TextTable(title, header, rows, meanings=MEANINGS))
    return tables


def corruption_table(corrupted: CorruptionResult) -> TextTable:
    """Return the logit average's accuracy at every severity, and its mean metrics, for each kind and over all."""

    def means(*kinds: str) -> list[str]:
        found = corrupted.means(*kinds)
        return [METRICS[key].number(found[key.partition("/")[2]]) for key in CORRUPTED]

    rows = [
        [kind.replace("_", " "), *(f"{100 * cell['accuracy']:.2f}" for cell in cells.values()), *means(kind)]
        for kind, cells in corrupted.kinds.items()
    ]
    rows.append(["mean", *(f"{value:.2f}" for value in severity_means(corrupted)), *means()])
    header = ["Accuracy, %, at severity", *map(str, SEVERITIES), "mean", "mean NLL", "mean ECE, %"]
    return TextTable(f"corruptions, {corrupted.source}", header, rows)


def severity_means(corrupted: CorruptionResult, who: str = "") -> list[float]:
    """Return the mean accuracy over all kinds at each severity, in %, of a member or the logit average."""
    key = f"{who}/accuracy".lstrip("/")
    return [
        100 * statistics.fmean(cells[severity][key] for cells in corrupted.kinds.values()) for severity in SEVERITIES
    ]


def accuracies(found: EvaluationResult, who: str = "") -> list[float]:
    """Return accuracy in % on clean images, and the means of :func:`severity_means` on corrupted ones."""
    assert found.corruptions is not None
    return [100 * found.flat()[f"{who}/accuracy".lstrip("/")], *severity_means(found.corruptions, who)]


def class_table(by_class: Mapping[str, Mapping[str, float]]) -> TextTable:
    """Return the metrics of each class (:func:`mixmo.evaluation.results.class_metrics`)."""
    keys = [key for key in METRICS if key != "images" and any(key in own for own in by_class.values())]
    rows = [
        [name, str(own["images"]), *(METRICS[key].number(own.get(key, math.nan)) for key in keys)]
        for name, own in by_class.items()
    ]
    header = ["class", "images", *(METRICS[key].column for key in keys)]
    return TextTable("by class, logit average", header, rows, meanings=MEANINGS)
