"""Objectives: functions of the members' logits and the mixed batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixmo.batch_mixing import MixedBatch, Objective
from mixmo.config.imports import is_import_path, resolve
from mixmo.config.settings import ObjectiveSettings
from mixmo.errors import InputError, one_of, reason

PUBLISHED = "mixed_cross_entropy"
"""The name of the paper's loss in recipes."""


def find_objective(
    settings: ObjectiveSettings, allowed: Sequence[str], members: int, classes: int, soft: bool
) -> Objective | None:
    """Return an objective of a user's own by its import path, tried before training starts; ``None`` for the paper's.

    Args:
        settings: Whose name is :data:`PUBLISHED`, or ``package.module:function``.
        allowed: The modules that may be imported.
        members: M.
        classes: K.
        soft: Whether targets are probabilities (B, M, K), as with mixing in pixels, rather than class numbers (B, M).

    Raises:
        InputError: if it is unknown, not allowed, or fails on a batch of zeros.

    Example:
        >>> find_objective(ObjectiveSettings(), [], 2, 10, False) is None
        True
    """
    name = settings.name
    if not is_import_path(name):
        one_of(name, (PUBLISHED,), "objective")
        return None
    own: Objective = resolve(name, allowed)
    size = (2, members)
    targets = torch.full((*size, classes), 1 / classes) if soft else torch.zeros(size, dtype=torch.int64)
    images, masks = torch.zeros(*size, 3, 8, 8), torch.full((*size, 1, 8, 8), 1 / members)
    logits = torch.zeros(*size, classes, requires_grad=True)
    try:
        loss = own(logits, MixedBatch(images, masks, targets, torch.ones(size), torch.ones(2) > 1))
    except Exception as error:  # a user's function: show what it raises
        raise InputError(f"objective {name!r} fails on a batch of two mixtures: {reason(error)}.") from error
    if not isinstance(loss, Tensor) or loss.shape != () or not loss.requires_grad:
        raise InputError(f"objective {name!r} does not return a scalar tensor that has a gradient.")
    return own
