"""What stands beside a network's weights wherever it goes: classes, how images are prepared, and a calibration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixmo.config.data_settings import LARGEST_SIDE, DataSettings
from mixmo.data.batches import Augmentation
from mixmo.errors import InputError
from mixmo.evaluation.calibration import Calibration

SPEC = "mixmo.json"
"""The description in an exported folder, and what it is called in an exported file."""

KEPT = ("channels", "crop_size", "interpolation", "mean", "std")
"""Settings that say how an image is prepared, beside its size."""

MOST_IMAGES = 10_000
"""Validation images whose confidences are written into a file."""


@dataclass(frozen=True)
class Spec:
    """What a network needs to be used.

    Attributes:
        classes: The K class names.
        size: (H, W) that images are brought to: scaled until they cover it, then cropped in their middle.
        data: ``channels``, ``interpolation``, ``crop_size``, ``mean`` and ``std``.
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

    def to_json(self) -> str:
        """Return all of it as JSON; of many validation images every n-th."""
        content: dict[str, Any] = {"classes": self.classes, "size": list(self.size)}
        content["data"] = {key: getattr(self.data, key) for key in KEPT}
        if (own := self.calibration) is not None:
            step = -(-len(own.correct) // MOST_IMAGES)
            content["calibration"] = {"temperature": own.temperature} | {
                key: [round(float(value), 6) for value in getattr(own, key)[::step]]
                for key in ("confidence", "correct", "likely")
            }
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str = "its description") -> Spec:
        """Return what :meth:`to_json` wrote.

        Args:
            text: The JSON.
            where: Whose it is, for errors.

        Raises:
            InputError: if it is damaged.
        """
        try:
            content = json.loads(text)
            classes, size = [str(name) for name in content["classes"]], tuple(int(side) for side in content["size"])
            data = DataSettings(**{key: content["data"][key] for key in KEPT})
            calibration = None
            if (own := content.get("calibration")) is not None:
                confidence, likely = (torch.tensor(own[key], dtype=torch.float64) for key in ("confidence", "likely"))
                correct = torch.tensor(own["correct"]) > 0.5
                calibration = Calibration(float(own["temperature"]), confidence, correct, likely)
            if len(size) != 2 or not all(0 < side <= LARGEST_SIDE for side in size) or not classes:
                raise ValueError(f"its size is {size}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where} is damaged, or none of mixmo's: {error}.") from error
        return cls(classes, (size[0], size[1]), data, calibration)
