"""Judge predictions: the ensemble, both ways of averaging, every member, and their diversity."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mixmo import metrics
from mixmo.batches import Augmentation
from mixmo.data import DistinctBatch
from mixmo.metrics.scores import check_logits, ensemble_log_probabilities
from mixmo.network import MixMo


def evaluate(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return every figure of ``test.json`` for the logits of M members.

    Keys without a prefix judge the average of the logits (the paper's rule), ``probability_average/…`` the
    average of the probabilities, ``member_0/…`` each member: ``accuracy`` and ``accuracy_top5`` (shares),
    ``nll`` (nats), ``brier`` (summed over classes), ``ece`` (15 bins). With M >= 2 there are also ``d_re``
    (ratio of single to shared errors) and ``disagreement`` (share), means over pairs of members.

    Args:
        logits: (N, M, K).
        targets: (N,) class numbers.

    Returns:
        A flat dict of floats.

    Raises:
        ValueError: if shapes do not fit, or a row has a value that is not finite or a target out of range.

    Example:
        >>> logits = torch.tensor([[[3.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]])
        >>> figures = evaluate(logits, torch.tensor([0, 0]))
        >>> figures["accuracy"], figures["member_0/accuracy"], figures["disagreement"]
        (1.0, 0.5, 0.5)
    """
    check_logits(logits, targets)
    averages = ensemble_log_probabilities(logits)
    figures = _scores(averages["logit"], targets)
    if logits.shape[1] > 1:
        predictions = logits.argmax(2)
        figures["d_re"] = metrics.error_ratio(predictions, targets)
        figures["disagreement"] = metrics.disagreement(predictions)
    parts = {"probability_average": averages["probability"]}
    for member in range(logits.shape[1]):
        parts[f"member_{member}"] = logits[:, member].double().log_softmax(1)
    for part, log_probabilities in parts.items():
        figures |= {f"{part}/{key}": value for key, value in _scores(log_probabilities, targets).items()}
    return figures


def _scores(log_probabilities: Tensor, targets: Tensor) -> dict[str, float]:
    probabilities = log_probabilities.exp()
    return {
        "accuracy": metrics.accuracy(log_probabilities, targets),
        "accuracy_top5": metrics.accuracy(log_probabilities, targets, top=5),
        "nll": metrics.negative_log_likelihood(log_probabilities, targets),
        "brier": metrics.brier_score(probabilities, targets),
        "ece": metrics.expected_calibration_error(probabilities, targets),
    }


@torch.inference_mode()
def predict_logits(
    net: torch.nn.Module, batches: Iterable[DistinctBatch], augment: Augmentation, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return logits (N, M, K) and targets (N,) on the CPU for batches of images, in order.

    A plain network's logits (N, K) stand as those of one member.

    Args:
        net: A :class:`MixMo` or a plain network, in evaluation mode.
        batches: From ``mixmo.data.evaluation_loader``.
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
