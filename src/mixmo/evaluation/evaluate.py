"""Judge predictions: the ensemble, both ways of averaging, every member, and their diversity."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from mixmo.data.batches import Augmentation
from mixmo.data.sets import DistinctBatch
from mixmo.metrics import Calibration, Diversity, EnsembleGain, Scores, SelectivePrediction
from mixmo.metrics.calibration import bin_gaps
from mixmo.metrics.checks import check_logits
from mixmo.metrics.chunks import in_chunks, mean_logits
from mixmo.metrics.temperature import two_fold
from mixmo.network import MixMo


@torch.no_grad()
def evaluate(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return every figure of ``test.json`` for the logits of M members.

    Keys without a prefix judge the average of the logits (the paper's rule), ``probability_average/…`` the average of
    the probabilities, ``member_0/…`` each member: those of :class:`mixmo.metrics.Scores` (``accuracy``, ``nll``,
    ``brier``, …), :class:`~mixmo.metrics.Calibration` (``ece``, …) and :class:`~mixmo.metrics.SelectivePrediction`
    (``aurc``, …). With M >= 2 there are also those of :class:`~mixmo.metrics.Diversity` (``d_re``, …) and
    :class:`~mixmo.metrics.EnsembleGain`. ``nll_two_fold`` and ``ece_two_fold`` are those of the logit average after
    temperature scaling, each half of the samples by the temperature of the other (the paper's NLLc).

    Args:
        logits: (N, M, K).
        targets: (N,) class numbers.

    Returns:
        A flat dict of floats; NaN where a figure is not defined.

    Raises:
        InputError: if shapes do not fit, or a row has a value that is not finite or a target out of range.

    Example:
        >>> logits = torch.tensor([[[3.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]])
        >>> figures = evaluate(logits, torch.tensor([0, 0]))
        >>> figures["accuracy"], figures["member_0/accuracy"], figures["disagreement"]
        (1.0, 0.5, 0.5)
    """
    check_logits(logits, targets)
    _, members, classes = logits.shape
    names = ("", "probability_average/", *(f"member_{index}/" for index in range(members)))
    scores = {name: Scores() for name in names}
    others: dict[str, list[Metric]] = {name: [Calibration(), SelectivePrediction()] for name in names}
    between = [Diversity(classes, members), EnsembleGain()] if members > 1 else []
    for chunk, labels in in_chunks(logits, targets):
        log_members = chunk.double().log_softmax(2)
        averages = (chunk.double().mean(1).log_softmax(1), log_members.logsumexp(1) - math.log(members))
        for name, logs in zip(names, (*averages, *log_members.unbind(1)), strict=True):
            scores[name].update(logs.exp(), labels, logs)
            for metric in others[name]:
                metric.update(logs.exp(), labels)
        for both in between:
            both.update(log_members.exp(), labels, log_members)
    others[""] += between
    figures = {
        f"{name}{key}": value.item()
        for name in names
        for metric in (scores[name], *others[name])
        for key, value in metric.compute().items()
    }
    return figures | _two_fold_figures(logits, targets)


def _two_fold_figures(logits: Tensor, targets: Tensor) -> dict[str, float]:
    if len(logits) < 2:
        return {"nll_two_fold": math.nan, "ece_two_fold": math.nan}
    figures = basic_figures(two_fold(mean_logits(logits), targets), targets)
    return {"nll_two_fold": figures["nll"], "ece_two_fold": figures["ece"]}


@torch.no_grad()
def basic_figures(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return ``accuracy``, ``nll`` and ``ece`` of one network, where the other figures are not worth their time.

    Args:
        logits: (N, K).
        targets: (N,) class numbers.

    Raises:
        InputError: as :func:`evaluate`.

    Example:
        >>> basic_figures(torch.zeros(2, 4), torch.tensor([0, 1]))
        {'accuracy': 0.5, 'nll': 1.386..., 'ece': 0.25}
    """
    samples = per_sample(logits, targets)
    gaps, _ = bin_gaps(samples.confidence, samples.right)
    return {
        "accuracy": samples.right.mean().item(),
        "nll": samples.nll.mean().item(),
        "ece": gaps.abs().sum().item() / len(targets),
    }


class Samples(NamedTuple):
    """What is known of each of N predictions, float64 but for ``predicted``.

    Attributes:
        confidence: (N,) largest probabilities.
        predicted: (N,) class numbers.
        right: (N,) 0 or 1.
        nll: (N,) -log p(target), in nats.
        brier: (N,) Σ_k (p_k - [k = target])².
    """

    confidence: Tensor
    predicted: Tensor
    right: Tensor
    nll: Tensor
    brier: Tensor


@torch.no_grad()
def per_sample(logits: Tensor, targets: Tensor) -> Samples:
    """Return what is known of each prediction of one network, or of averaged logits.

    Args:
        logits: (N, K).
        targets: (N,) class numbers.

    Raises:
        InputError: as :func:`evaluate`.

    Example:
        >>> found = per_sample(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        >>> found.confidence.item(), found.right.item(), found.brier.item()
        (0.5, 0.0, 0.5)
    """
    check_logits(logits[:, None], targets)
    kinds = (torch.float64, torch.int64, torch.float64, torch.float64, torch.float64)
    found = Samples(*(targets.new_empty(len(targets), dtype=kind) for kind in kinds))
    for chunk, labels, *rows in in_chunks(logits, targets, *found):
        logs = chunk.double().log_softmax(1)
        p = logs.exp()
        confidence, predicted = p.max(1)
        own = logs.gather(1, labels[:, None])[:, 0]
        brier = p.square().sum(1) - 2 * own.exp() + 1
        for row, values in zip(rows, (confidence, predicted, predicted == labels, -own, brier), strict=True):
            row.copy_(values)
    return found


@torch.inference_mode()
def predict_logits(
    net: torch.nn.Module, batches: Iterable[DistinctBatch], augment: Augmentation, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return logits (N, M, K) and targets (N,) on the CPU for batches of images, in order.

    A plain network's logits (N, K) stand as those of one member.

    Args:
        net: A :class:`MixMo` or a plain network, in evaluation mode.
        batches: From ``mixmo.data.loading.evaluation_loader``.
        augment: Its middle crop and normalisation are used.
        device: Where ``net`` is.
    """
    logits, targets = [], []
    for images, labels, index in batches:
        images, labels, index = images.to(device), labels.to(device), index.to(device)
        output = net(augment.center(images, index)).float()
        logits.append((output if isinstance(net, MixMo) else output[:, None]).cpu())
        targets.append(labels[index].cpu())
    return torch.cat(logits), torch.cat(targets)
