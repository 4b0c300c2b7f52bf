"""Input checks of metrics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from mixmo.errors import InputError, explain_errors
from mixmo.metrics.chunks import in_chunks


def as_tensor(values: Tensor | npt.ArrayLike, what: str) -> Tensor:
    """Convert numbers to a tensor; copy arrays that torch cannot wrap (read-only, foreign byte order).

    Example:
        >>> as_tensor(["cat"], "targets")
        Traceback (most recent call last):
        mixmo.errors.InputError: targets are not an array of numbers: ...
    """
    if hasattr(values, "__array__") and not isinstance(values, Tensor):  # also those of pandas
        values = np.asarray(values)
        values = np.require(values, values.dtype.newbyteorder("="), ["C", "W"])
    with explain_errors(f"{what} are not an array of numbers", TypeError, ValueError, RuntimeError):
        return torch.as_tensor(values)


def check_targets(targets: Tensor, rows: int, classes: int) -> Tensor:
    """Return class numbers (N,) of any integer type as int64.

    Raises:
        InputError: if shape, type or range is wrong; names the first invalid row.
    """
    if targets.shape != (rows,):
        raise InputError(f"targets have shape {tuple(targets.shape)}; they must be class numbers ({rows},).")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InputError(f"targets have type {str(targets.dtype).removeprefix('torch.')}; they must be integers.")
    targets = targets.long()
    bad = ((targets < 0) | (targets >= classes)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise InputError(
            f"target {int(targets[row])} in row {row} is out of range; {classes} classes are numbered 0 to "
            f"{classes - 1}."
        )
    return targets


def check_logits(logits: Tensor) -> None:
    """Refuse logits that are not (N, M, K), empty or not finite."""
    if logits.dim() != 3:
        raise InputError(f"logits have shape {tuple(logits.shape)}; they must be (N, M, K).")
    if not logits.numel():
        raise InputError(f"logits of shape {tuple(logits.shape)} are empty; there is nothing to evaluate.")
    _check_finite(logits, "logits")


def check_targets_for(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the class numbers (N,) of logits (N, M, K) as int64, after checking both."""
    check_logits(logits)
    return check_targets(targets, len(logits), logits.shape[2])


def check_probabilities(probabilities: Tensor, axes: int = 2) -> Tensor:
    """Return probabilities (B, K), or (B, M, K) for three axes, in float64.

    Rows must sum to one within 1e-4, or 1e-2 for 16-bit floats.

    Raises:
        InputError: if they are not distributions; names the first invalid row.
    """
    if probabilities.dim() != axes or not probabilities.is_floating_point():
        wanted = "(B, K)" if axes == 2 else "(B, M, K)"
        raise InputError(
            f"probabilities are {probabilities.dtype} {tuple(probabilities.shape)}; they must be floats {wanted}."
        )
    _check_finite(probabilities, "probabilities")
    precise = probabilities.double()
    negative = (precise < 0).flatten(1).any(1).nonzero()
    if len(negative):
        raise InputError(f"probabilities in row {int(negative[0])} are negative.")
    tolerance = 1e-2 if probabilities.element_size() == 2 else 1e-4
    sums = precise.sum(-1, keepdim=True).flatten(1)
    bad = ((sums - 1).abs() > tolerance).any(1).nonzero()
    if len(bad):
        row = sums[int(bad[0])]
        worst = row[(row - 1).abs().argmax()].item()
        raise InputError(
            f"probabilities in row {int(bad[0])} sum to {worst:.4g}, not to one ({len(bad)} such rows of {len(sums)})."
        )
    return precise


def _check_finite(values: Tensor, what: str) -> None:
    bad = torch.cat([(~part.isfinite()).flatten(1).any(1) for (part,) in in_chunks(values)]).nonzero()
    if len(bad):
        rows = "row" if len(bad) == 1 else "rows"
        raise InputError(f"{what} in row {int(bad[0])} are not finite ({len(bad)} such {rows} of {len(values)}).")


def gather_state(state: Tensor | list[Tensor]) -> Tensor:
    """Concatenate a metric's state of all batches or processes; refuse an empty one."""
    check_not_empty(len(state) if isinstance(state, Tensor) else sum(map(len, state)))
    return dim_zero_cat(state)


def check_not_empty(count: Tensor | int) -> None:
    """Refuse a metric without samples."""
    if not count:
        raise InputError("there are no predictions to evaluate; add some with update().")


def zeros(*size: int) -> Tensor:
    """Return float64 zeros."""
    return torch.zeros(size, dtype=torch.float64)
