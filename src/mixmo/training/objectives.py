"""What training minimises: functions of the members' logits and the mixed batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mixmo.config.imports import is_import_path, resolve
from mixmo.config.settings import ObjectiveSettings
from mixmo.data.batches import MixedBatch
from mixmo.errors import InputError, one_of, reason
from mixmo.mixing import mixed_cross_entropy as cross_entropy

Objective = Callable[[Tensor, MixedBatch], Tensor]
"""Maps logits (B, M, K) and the batch they are of to the loss, a scalar that has a gradient."""


def mixed_cross_entropy(logits: Tensor, batch: MixedBatch, label_smoothing: float = 0.0) -> Tensor:
    """Return the loss of the paper (equation 3): the members' weighted cross-entropies, summed, in nats.

    Args:
        logits: (B, M, K).
        batch: What the logits are of; its targets and weights are read.
        label_smoothing: Share of each target that is spread evenly over all classes.

    Example:
        >>> empty, targets = torch.empty(1), torch.tensor([[0, 1]])
        >>> batch = MixedBatch(empty, empty, targets, torch.ones(1, 2), torch.tensor([False]))
        >>> mixed_cross_entropy(torch.zeros(1, 2, 2), batch).item()  # 2 ln 2
        1.3862...
    """
    return cross_entropy(logits, batch.targets, batch.weights, label_smoothing)


OBJECTIVES: dict[str, Callable[..., Tensor]] = {"mixed_cross_entropy": mixed_cross_entropy}
"""Every objective by its name in recipes."""


def find_objective(
    settings: ObjectiveSettings, allowed: Sequence[str], members: int, classes: int, soft: bool
) -> Objective:
    """Return an objective by its name or import path; one of a user's own is tried before training starts.

    Args:
        settings: Whose name is one of :data:`OBJECTIVES`, or ``package.module:function``.
        allowed: The modules that may be imported.
        members: M.
        classes: K.
        soft: Whether targets are probabilities (B, M, K), as with mixing in pixels, rather than class numbers (B, M).

    Raises:
        InputError: if it is unknown, not allowed, or fails on a batch of zeros.

    Example:
        >>> find_objective(ObjectiveSettings(), [], 2, 10, False) is mixed_cross_entropy
        True
    """
    name = settings.name
    if not is_import_path(name):
        objective = OBJECTIVES[one_of(name, OBJECTIVES, "objective")]
        smoothing = settings.label_smoothing
        return partial(objective, label_smoothing=smoothing) if smoothing else objective
    own: Objective = resolve(name, allowed)
    size = (2, members)
    targets = torch.full((*size, classes), 1 / classes) if soft else torch.zeros(size, dtype=torch.int64)
    images, masks = torch.zeros(*size, 3, 8, 8), torch.full((*size, 1, 8, 8), 1 / members)
    logits = torch.zeros(*size, classes, requires_grad=True)
    try:
        loss = own(logits, MixedBatch(images, masks, targets, torch.ones(size), torch.ones(2) > 1))
    except Exception as error:  # the function is a user's: whatever it raises is for the user to see
        raise InputError(f"objective {name!r} fails on a batch of two mixtures: {reason(error)}.") from error
    if not isinstance(loss, Tensor) or loss.shape != () or not loss.requires_grad:
        raise InputError(f"objective {name!r} does not return a scalar tensor that has a gradient.")
    return own
