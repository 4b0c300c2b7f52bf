"""What stands beside a network's weights wherever it goes: classes, how images are prepared, and a calibration."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

from mixmo.config.data_settings import LARGEST_SIDE, PREPARATION, DataSettings
from mixmo.data.batches import Augmentation
from mixmo.digests import DIGEST, SPEC, file_digests, placeholder, write_digest
from mixmo.errors import InputError, reason
from mixmo.evaluation.calibration import Calibration, kept_calibration
from mixmo.evaluation.inference import TrainedRun
from mixmo.files import write_text
from mixmo.validation import check_value

KEPT = tuple(key for key in PREPARATION if key != "image_size")
"""Settings that say how an image is prepared, beside its size."""

KEYS = {"classes", "size", "data", "calibration", "files", DIGEST}
"""What a description holds."""

MOST_IMAGES = 10_000
"""Validation images whose confidences are written into a file."""


@dataclass(frozen=True)
class Spec:
    """What a network needs to be used.

    Attributes:
        classes: The K class names.
        size: (H, W) that images are brought to: scaled until they cover it, then cropped in their middle.
        data: ``channels``, ``interpolation``, ``crop_size``, ``mean``, ``std`` and ``window``.
        calibration: From validation images; ``None`` without them.

    Example:
        >>> spec = Spec(["cat", "dog"], (8, 8), DataSettings(mean=[0.5], std=[0.25]), None)
        >>> Spec.from_json(spec.to_json()) == spec
        True
    """

    classes: list[str]
    size: tuple[int, int]
    data: DataSettings
    calibration: Calibration | None

    @property
    def input_size(self) -> tuple[int, int]:
        """(h, w) of what the network sees."""
        crop = self.data.crop_size
        return self.size if crop is None else (crop, crop)

    def prepared(self, images: Tensor) -> Tensor:
        """Return what the network sees, (B, C, h, w), of images (B, H, W, C) uint8 of the size."""
        return Augmentation(self.data).center(images, torch.arange(len(images), device=images.device))

    def to_json(self, **more: Any) -> str:
        """Return all of it as JSON; of many validation images every n-th.

        Args:
            **more: What else to write: the digest, and those of files.
        """
        content: dict[str, Any] = {"classes": self.classes, "size": list(self.size)} | more
        content["data"] = {key: getattr(self.data, key) for key in KEPT}
        if (own := self.calibration) is not None:
            step = -(-len(own.correct) // MOST_IMAGES)
            content["calibration"] = {"temperature": own.temperature} | {
                key: getattr(own, key)[::step].tolist() for key in ("confidence", "correct", "likely")
            }
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str = "its description", checked_digest: bool = True) -> Spec:
        """Return what :meth:`to_json` wrote.

        Args:
            text: The JSON.
            where: Whose it is, for errors.
            checked_digest: Whether the digest was found, and was right; if not, the text has to name none.

        Raises:
            InputError: if it is damaged.
        """
        try:
            content = json.loads(text)
            if not isinstance(content, dict):
                raise InputError("it is no mapping")
            if strange := content.keys() - KEYS:
                raise InputError(f"it has a key {min(strange)!r}")
            if DIGEST in content and not checked_digest:
                raise InputError("the digest that it names is missing")
            size = tuple(check_value(content["size"], list[int], "size"))
            if len(size) != 2 or not all(0 < side <= LARGEST_SIDE for side in size):
                raise InputError(f"size is {size}; it is a height and a width from 1 to {LARGEST_SIDE}")
            classes = check_value(content["classes"], list[str], "classes")
            if not classes:
                raise InputError("it names no classes")
            hints = get_type_hints(DataSettings)
            known = {"window": None, "own_transforms": False} | content[
                "data"
            ]  # descriptions of earlier versions have none
            if wrong := known.keys() ^ set(KEPT):
                raise InputError(f"its data has or lacks a key {min(wrong)!r}")
            data = DataSettings(**{key: check_value(value, hints[key], f"data.{key}") for key, value in known.items()})
            own = content.get("calibration")
            return cls(classes, (size[0], size[1]), data, None if own is None else _calibration(own))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InputError) as error:
            raise InputError(f"{where} is damaged, or none of mixmo's: {reason(error)}.") from error


def write_description(folder: Path, spec: Spec) -> None:
    """Write the description of a folder, with digests of itself and of the files that are there."""
    placed = placeholder()
    digests = file_digests(folder, sorted(each.name for each in folder.iterdir() if each.name != SPEC))
    write_text(folder / SPEC, spec.to_json(files=digests, **{DIGEST: placed}))
    write_digest(folder / SPEC, placed)


def _calibration(own: Any) -> Calibration:
    """Return the calibration of a description; refuse what is none."""
    columns = {key: check_value(own[key], list[float], f"calibration.{key}") for key in ("confidence", "likely")}
    correct = check_value(own["correct"], list[bool], "calibration.correct")
    if not len(correct) == len(columns["confidence"]) == len(columns["likely"]) > 0:
        raise InputError("its calibration has columns of other lengths, or none")
    if not all(0 <= value <= 1 for values in columns.values() for value in values):
        raise InputError("its calibration has probabilities outside 0 to 1")
    confidence, likely = (torch.tensor(columns[key], dtype=torch.float64) for key in ("confidence", "likely"))
    return Calibration(checked_temperature(own["temperature"]), confidence, torch.tensor(correct), likely)


def checked_temperature(value: Any) -> float:
    """Return a temperature of a description; refuse what is none.

    Raises:
        InputError: if it is no positive number.

    Example:
        >>> checked_temperature(2)
        2.0
    """
    temperature: float = check_value(value, float, "temperature")
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature}; it is a positive number")
    return temperature


def spec_of(run: TrainedRun) -> Spec:
    """Return the description of a run's network.

    Args:
        run: The run; its dataset may be gone.

    Raises:
        MissingError: if its checkpoint is missing.
        InputError: if it is damaged, or does not say the size of its images.
    """
    run.tell_of_changes()
    network, side = run.network, run.settings.data.image_size
    size = network.size or (None if side is None else (side, side))
    if size is None:
        raise InputError(
            f"{run.run.path} was trained by an earlier version, whose checkpoints do not say the size of their images; "
            "set data.image_size in its config.yaml."
        )
    return Spec(network.classes, size, run.settings.data, kept_calibration(run))
