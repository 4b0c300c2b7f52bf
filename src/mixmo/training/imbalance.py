"""Class imbalance: class weights and a warning (the balanced sampler is in `data/orders`)."""

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
"""Training images of the largest class per image of the smallest from which a warning is logged."""

log = logging.getLogger("mixmo")


def find_class_weights(settings: Settings, data: DataModule) -> Tensor | None:
    """Return class weights (K,) of the loss with mean 1 over the images shown; ``None`` if there are none.

    Example:
        >>> from mixmo.config.settings import ObjectiveSettings
        >>> from mixmo.data.module import DataSettings
        >>> data = DataModule(DataSettings(name="digits", channels=1), seed=0)
        >>> settings = Settings(data=data.settings, objective=ObjectiveSettings(class_weights=[1.0] * 9 + [2.0]))
        >>> find_class_weights(settings, data)[8:]
        tensor([0.9086, 1.8173])
    """
    setting, classes = settings.objective.class_weights, data.classes
    if setting == "none":
        return None
    counts = _count_images(data)
    if isinstance(setting, str):
        weights = 1 / counts
    elif isinstance(setting, dict):
        for name in setting:
            one_of(name, classes, "class in objective.class_weights")
        if missing := [name for name in classes if name not in setting]:
            raise InputError(f"objective.class_weights has no weight for {list_some(missing)}; give one per class.")
        weights = np.array([setting[name] for name in classes])
    else:
        weights = np.array(setting)
    if len(weights) != len(classes):
        raise InputError(
            f"objective.class_weights has {len(weights)} numbers, but there are {len(classes)} classes; give one for "
            "each, in their order."
        )
    shown = np.ones(len(classes)) if settings.data.sampler == "balanced" else counts
    return torch.tensor(weights * shown.sum() / (weights * shown).sum(), dtype=torch.float32)


def warn_of_imbalance(settings: Settings, data: DataModule) -> None:
    """Warn of classes of very unequal size, unless class weights or the balanced sampler compensate for them."""
    if settings.data.multi_label or settings.objective.class_weights != "none" or settings.data.sampler == "balanced":
        return
    counts = _count_images(data)
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] >= RATIO * counts[least]:
        log.warning(
            "class %s has %d training images and class %s only %d, so the network may hardly ever predict it; "
            "objective.class_weights balanced or data.sampler balanced compensates for this.",
            printable(data.classes[most]), counts[most], printable(data.classes[least]), counts[least],
        )  # fmt: skip


def _count_images(data: DataModule) -> np.ndarray:
    """Return the number (K,) of training images of each class."""
    return np.bincount(np.asarray(data.train.labels), minlength=len(data.classes))
