"""Metrics of the ensemble, of every member, and of their diversity."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torchmetrics import Metric, MetricCollection

from mixmo.metrics import Calibration, Diversity, MultiLabelScores, Scores, SelectivePrediction
from mixmo.metrics.calibration_errors import bin_gaps, expected_error
from mixmo.metrics.checks import as_tensor, check_targets_for
from mixmo.metrics.chunks import in_chunks, mean_logits
from mixmo.metrics.diversity import disagreement
from mixmo.metrics.multi_label import check_label_sets
from mixmo.metrics.samples import per_sample
from mixmo.metrics.temperature import two_fold

log = logging.getLogger("mixmo")


@dataclass(frozen=True)
class EnsembleMetrics:
    """Metrics of M members on one set of images (:func:`measure`); undefined ones are NaN.

    ``average``, ``probability_average`` and each of ``members`` have the metrics of :class:`mixmo.metrics.Scores`
    (``accuracy``, ``nll``, ``brier``, …), :class:`~mixmo.metrics.Calibration` (``ece``, …) and
    :class:`~mixmo.metrics.SelectivePrediction` (``aurc``, …), or of :class:`~mixmo.metrics.MultiLabelScores` (``map``,
    …) for images with several labels.

    Attributes:
        average: Of the averaged logits, the paper's rule; also ``nll_two_fold`` and ``ece_two_fold``, with each half of
            the samples scaled by the temperature fitted on the other (the paper's NLLc).
        probability_average: Of the averaged probabilities.
        members: Of each member alone.
        diversity: Of all members together: :class:`~mixmo.metrics.Diversity` (``d_re``, …), or ``label_disagreement``,
            the share of labels on which two members disagree. Empty for one member.
    """

    average: dict[str, float]
    probability_average: dict[str, float]
    members: list[dict[str, float]]
    diversity: dict[str, float]

    def flat(self) -> dict[str, float]:
        """Return all metrics by key of ``test.json``."""
        sections = {"probability_average": self.probability_average}
        sections |= {f"member_{index}": member for index, member in enumerate(self.members)}
        prefixed = {f"{name}/{key}": value for name, section in sections.items() for key, value in section.items()}
        return self.average | self.diversity | prefixed


def evaluate(logits: Tensor | npt.ArrayLike, targets: Tensor | npt.ArrayLike) -> dict[str, float]:
    """Compute all metrics, in a flat dict with the keys of ``test.json``.

    Keys without a prefix are metrics of the averaged logits (the paper's rule) and of the members' diversity, keys
    ``probability_average/…`` of the averaged probabilities, keys ``member_0/…`` of single members.

    Args:
        logits: (N, M, K), as returned by ``net.members``, or (N, K) of one network or an ensemble; tensors or arrays.
        targets: (N,) class numbers of any integer type, or labels (N, K), 0 or 1.

    Returns:
        Floats by key; NaN if undefined. For logits (N, K), only keys without a prefix. Accuracies and calibration
        errors are shares from 0 to 1, NLL is in nats; docs/evaluation.md has all formulas.

    Raises:
        InputError: if shapes do not match, a logit is not finite or a target is out of range.

    Example:
        >>> logits = torch.tensor([[[3.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]])
        >>> metrics = evaluate(logits, torch.tensor([0, 0]))
        >>> metrics["accuracy"], metrics["member_0/accuracy"], metrics["disagreement"]
        (1.0, 0.5, 0.5)
        >>> evaluate(logits.mean(1), torch.tensor([0, 0]))["nll"] == metrics["nll"]
        True
        >>> evaluate(logits, torch.tensor([[1, 0], [1, 0]]))["exact_match"]
        0.5
    """
    members = as_tensor(logits, "logits")
    labels = as_tensor(targets, "targets").to(members.device)
    return measure(members[:, None], labels).average if members.dim() == 2 else measure(members, labels).flat()


ALONE: dict[str, Any] = {"sync_on_compute": False}
"""Every process has all predictions: torchmetrics would count them once for each rank of a process group."""


@torch.no_grad()
def measure(logits: Tensor, targets: Tensor) -> EnsembleMetrics:
    """Compute the metrics of M members from logits (N, M, K) and targets (N,), or labels (N, K).

    Raises:
        InputError: if shapes do not match, a logit is not finite or a target is out of range.
    """
    if targets.dim() == 2:
        return _measure_labels(logits, check_label_sets(logits, targets))
    targets = check_targets_for(logits, targets)
    _warn_of_probabilities(logits)
    count = logits.shape[1]
    kinds = (Scores, Calibration, SelectivePrediction)
    collections = [MetricCollection([kind(**ALONE) for kind in kinds], compute_groups=False) for _ in range(count + 2)]
    diversity = Diversity(count, **ALONE) if count > 1 else None
    for chunk, labels in in_chunks(logits, targets):
        log_members = chunk.double().log_softmax(2)
        averages = (chunk.double().mean(1).log_softmax(1), log_members.logsumexp(1) - math.log(count))
        for metrics, logs in zip(collections, (*averages, *log_members.unbind(1)), strict=True):
            metrics.update(probabilities=logs.exp(), targets=labels, log_probabilities=logs)
        if diversity is not None:
            diversity.update(log_members.exp(), labels, log_members)
    average, probability_average, *members = map(_compute, collections)
    scaled = basic_metrics(two_fold(mean_logits(logits), targets), targets) if len(logits) > 1 else {}
    average |= {f"{key}_two_fold": scaled.get(key, math.nan) for key in ("nll", "ece")}
    return EnsembleMetrics(average, probability_average, members, {} if diversity is None else _compute(diversity))


def _warn_of_probabilities(logits: Tensor) -> None:
    """Warn of probabilities (N, M, K) passed as logits."""
    if logits.shape[2] > 1 and logits.min() >= 0 and bool(((logits.sum(2) - 1).abs() < 1e-2).all()):
        log.warning(
            "the logits look like probabilities: none is negative and each row sums to one. Give their logarithms, or "
            "in a file name them `probabilities`; otherwise NLL, Brier score and calibration errors are wrong."
        )


def _measure_labels(logits: Tensor, targets: Tensor) -> EnsembleMetrics:
    """Compute the metrics of M members on images with several labels."""
    members, metrics = logits.double(), []
    log_present, log_absent = (logsigmoid(side).logsumexp(1) for side in (members, -members))  # of mean probabilities
    for log_odds in (members.mean(1), log_present - log_absent, *members.unbind(1)):
        scores = MultiLabelScores(**ALONE)
        scores.update(log_odds, targets)
        metrics.append(_compute(scores))
    diversity = {}
    if members.shape[1] > 1:
        decisions = (members > 0).movedim(1, 2).flatten(0, 1)
        diversity = {"label_disagreement": disagreement(decisions).mean().item()}
    return EnsembleMetrics(metrics[0], metrics[1], metrics[2:], diversity)


def _compute(metric: Metric | MetricCollection) -> dict[str, float]:
    return {key: value.item() for key, value in metric.compute().items()}


def basic_metrics(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Compute only ``accuracy``, ``nll`` and ``ece`` of logits (N, K), to save time."""
    samples = per_sample(logits, targets)
    return {
        "accuracy": samples.right.mean().item(),
        "nll": samples.nll.mean().item(),
        "ece": expected_error(*bin_gaps(samples.confidence, samples.right)).item(),
    }
