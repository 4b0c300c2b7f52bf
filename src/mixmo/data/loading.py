"""Functions that evaluation still calls, on top of :class:`mixmo.data.module.DataModule`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixmo.config.settings import DataSettings
from mixmo.data.module import DataModule
from mixmo.data.sets import ImageSet


def load_test_images(settings: DataSettings, other: str | None = None) -> tuple[ImageSet, list[str]]:
    """Return test images and their classes."""
    data = DataModule(settings)
    return (data.test, data.classes) if other is None else data.other(other)


def fingerprint_of_test(settings: DataSettings, other: str | None = None) -> str:
    """Return a fingerprint of test images."""
    return DataModule(settings).fingerprint("test", other)


def fingerprint_of_validation(settings: DataSettings, seed: int) -> str:
    """Return a fingerprint of validation images."""
    return DataModule(settings, seed).fingerprint("validation")


def load_validation_images(settings: DataSettings, seed: int) -> tuple[ImageSet, list[str]]:
    """Return validation images and their classes."""
    data = DataModule(settings, seed)
    data.fingerprint("validation")
    assert data.validation is not None
    return data.validation, data.classes


def read_test_images(settings: DataSettings, chosen: Sequence[int]) -> list[np.ndarray]:
    """Return some test images."""
    data = DataModule(settings)
    return [data.image(index) for index in chosen]
