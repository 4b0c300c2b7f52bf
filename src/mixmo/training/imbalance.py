"""Classes of unequal size: weights of their losses, and a warning; `data/orders` has the balanced sampler."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from mixmo.config.settings import Settings
from mixmo.data.messages import list_some
from mixmo.data.module import DataModule
from mixmo.errors import InputError, one_of
from mixmo.escaping import printable

RATIO = 10
"""Ratio of the largest class's training images to the smallest's from which on a warning is logged."""

log = logging.getLogger("mixmo")


def find_class_weights(settings: Settings, data: DataModule) -> Tensor | None:
    """Return the factors (K,) of the classes' losses, which average 1 over the images shown; ``None`` where all are 1.

    Example:
        >>> from mixmo.config.settings import ObjectiveSettings
        >>> from mixmo.data.module import DataSettings
        >>> data = DataModule(DataSettings(name="digits", channels=1), seed=0)
        >>> settings = Settings(data=data.settings, objective=ObjectiveSettings(class_weights=[1.0] * 9 + [2.0]))
        >>> find_class_weights(settings, data)[8:]
        tensor([0.9086, 1.8173])
    """
    asked, classes = settings.objective.class_weights, data.classes
    if asked == "none":
        return None
    counts = _count_images(data)
    if isinstance(asked, str):
        weights = 1 / counts
    elif isinstance(asked, dict):
        for name in asked:
            one_of(name, classes, "class in objective.class_weights")
        if missing := [name for name in classes if name not in asked]:
            raise InputError(f"objective.class_weights has no weight of {list_some(missing)}; give one for each class.")
        weights = np.array([asked[name] for name in classes])
    else:
        weights = np.array(asked)
    if len(weights) != len(classes):
        raise InputError(
            f"objective.class_weights has {len(weights)} numbers, but there are {len(classes)} classes; give one for "
            "each, in their order."
        )
    shown = np.ones(len(classes)) if settings.data.sampler == "balanced" else counts
    return torch.tensor(weights * shown.sum() / (weights * shown).sum(), dtype=torch.float32)


def warn_of_imbalance(settings: Settings, data: DataModule) -> None:
    """Log that the largest class has many times the training images of the smallest, where nothing makes up for it."""
    if settings.data.multi_label or settings.objective.class_weights != "none" or settings.data.sampler == "balanced":
        return
    counts = _count_images(data)
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] >= RATIO * counts[least]:
        log.warning(
            "class %s has %d training images and class %s only %d, which the network may hardly ever predict; "
            "objective.class_weights balanced or data.sampler balanced makes up for it.",
            printable(data.classes[most]), counts[most], printable(data.classes[least]), counts[least],
        )  # fmt: skip


def _count_images(data: DataModule) -> np.ndarray:
    """Return the number (K,) of training images of each class."""
    return np.bincount(np.asarray(data.train.labels), minlength=len(data.classes))
