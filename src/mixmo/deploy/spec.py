"""The description exported with a network: its header and calibration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import PlainValidator
from pydantic.dataclasses import dataclass
from torch import Tensor

from mixmo.data.batches import Augmentations, CenterCrop
from mixmo.digests import DIGEST, SPEC, file_digests, placeholder, write_digest
from mixmo.errors import InputError, reason
from mixmo.evaluation.calibration import (
    COLUMNS,
    AnyCalibration,
    Calibration,
    LabelCalibration,
    columns_of,
    from_columns,
    load_kept_calibration,
)
from mixmo.evaluation.inference import TrainedRun
from mixmo.files import write_text
from mixmo.header import Header
from mixmo.validation import CONFIG

MOST_IMAGES = 10_000
"""Largest number of validation images whose confidences are written into a file."""

KINDS = {"correct": torch.bool, "targets": torch.int64}
RANGES = {"targets": (0, math.inf), "raps": (-math.inf, math.inf)}
"""Columns of a calibration that are not float64, and ranges of those that do not lie between 0 and 1."""


def _calibration(value: Any) -> AnyCalibration | None:
    """Return the calibration of a description; refuse anything else."""
    if value is None or isinstance(value, AnyCalibration):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("it must be a mapping")
    names = ("thresholds",) if "thresholds" in value else COLUMNS
    columns = {key: _column(key, value.get(key)) for key in names}
    temperature = value.get("temperature")
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise ValueError("it must have a positive temperature")
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError("it must have columns of one length")
    return from_columns(float(temperature), columns)


def _column(key: str, values: Any) -> Tensor:
    """Return a column of a calibration."""
    try:
        numbers = torch.tensor(values, dtype=torch.float64)
        found = numbers.to(KINDS.get(key, torch.float64))
        least, most = RANGES.get(key, (0, 1))
        fits = (numbers >= least) & (numbers <= most) & numbers.isfinite() & (found == numbers)
        if numbers.dim() == 1 and len(numbers) and bool(fits.all()):
            return found
    except (OverflowError, RuntimeError, TypeError, ValueError):
        pass
    raise ValueError(f"it must have {key}, whole and within its range")


@dataclass(frozen=True, config=CONFIG)
class Spec(Header):
    """Everything needed to use a network; ``calibration`` is from validation images, ``None`` without them.

    Example:
        >>> from mixmo.header import Preparation
        >>> data = Preparation(channels=3, interpolation="bicubic", mean=[0.5], std=[0.25], crop_size=None)
        >>> spec = Spec(["cat", "dog"], (8, 8), data)
        >>> Spec.from_json(spec.to_json()) == spec
        True
    """

    calibration: Annotated[AnyCalibration | None, PlainValidator(_calibration)] = None

    def __post_init__(self) -> None:
        if (own := self.calibration) is None:
            return
        if isinstance(own, LabelCalibration) != self.multi_label or (
            isinstance(own, LabelCalibration) and len(own.thresholds) != len(self.classes)
        ):
            raise ValueError("its calibration is for other classes")

    @cached_property
    def _crop(self) -> CenterCrop:
        return CenterCrop(self.data)

    def views(self, images: Tensor, tta: Augmentations = "none") -> list[Tensor]:
        """Return the network's inputs, each (B, C, h, w), for images (B, H, W, C) uint8 of the size."""
        return self._crop.views(images, tta)

    def to_json(self, **more: Any) -> str:
        """Return the description and ``more``, such as a digest, as JSON; of many validation images only every n-th."""
        content = self.to_dict() | more
        if (own := self.calibration) is not None:
            step = -(-len(own.correct) // MOST_IMAGES) if isinstance(own, Calibration) else 1
            columns = {key: column[::step].tolist() for key, column in columns_of(own).items()}
            content["calibration"] = {"temperature": own.temperature} | columns
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str = "its description", checked_digest: bool = True) -> Spec:
        """Return the description that :meth:`to_json` wrote; refuse a newer format, and damage.

        It must not name a digest that was not found in its file, ``where``, and verified.
        """
        damaged = f"{where} is damaged, or not mixmo's"
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{damaged}: {reason(error)}.") from error
        if not isinstance(content, dict):
            raise InputError(f"{damaged}: it is not a mapping.")
        if DIGEST in content and not checked_digest:
            raise InputError(f"{damaged}: the digest that it names is missing.")
        own = {key: value for key, value in content.items() if key not in ("files", DIGEST)}
        return cls.from_dict(own, where)


def write_description(folder: Path, spec: Spec) -> None:
    """Write the description of a folder, with digests of itself and of the files that are there."""
    placed = placeholder()
    digests = file_digests(folder, sorted(each.name for each in folder.iterdir() if each.name != SPEC))
    write_text(folder / SPEC, spec.to_json(files=digests, **{DIGEST: placed}))
    write_digest(folder / SPEC, placed)


def describe_run(run: TrainedRun) -> Spec:
    """Return the description of a run's network; its configuration and its dataset may be gone."""
    run.warn_of_changes()
    own = {each.name: getattr(run.header, each.name) for each in fields(Header)}
    return Spec(**own, calibration=load_kept_calibration(run))
