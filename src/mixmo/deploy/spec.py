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

from mixmo.config.preprocessing import read_local_config
from mixmo.data.batches import Augmentations, CenterCrop
from mixmo.digests import DIGEST, SPEC, file_digests, placeholder, write_digest
from mixmo.errors import InputError, explain_errors
from mixmo.escaping import timm_scheme
from mixmo.evaluation.calibration import (
    COLUMNS,
    AnyCalibration,
    LabelCalibration,
    from_columns,
    load_cached_calibration,
    to_columns,
)
from mixmo.evaluation.inference import TrainedRun
from mixmo.files import write_text
from mixmo.header import Header
from mixmo.validation import CONFIG

DTYPES = {"correct": torch.bool, "targets": torch.int64}
RANGES = {"targets": (0, math.inf), "raps": (-math.inf, math.inf)}
"""Types of a calibration's columns other than float64, and ranges other than [0, 1]."""


def _parse_calibration(value: Any) -> AnyCalibration | None:
    """Validate the calibration of a description."""
    if value is None or isinstance(value, AnyCalibration):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("it must be a mapping")
    names = ("thresholds",) if "thresholds" in value else COLUMNS
    columns = {key: _parse_column(key, value.get(key)) for key in names}
    temperature = value.get("temperature")
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise ValueError("it must have a positive temperature")
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError("it must have columns of one length")
    return from_columns(float(temperature), columns)


def _parse_column(key: str, values: Any) -> Tensor:
    """Validate a column of a calibration."""
    try:
        numbers = torch.tensor(values, dtype=torch.float64)
        column = numbers.to(DTYPES.get(key, torch.float64))
        low, high = RANGES.get(key, (0, 1))
        valid = (numbers >= low) & (numbers <= high) & numbers.isfinite() & (column == numbers)
        if numbers.dim() == 1 and len(numbers) and bool(valid.all()):
            return column
    except (OverflowError, RuntimeError, TypeError, ValueError):
        pass
    raise ValueError(f"it must have {key}, a list of numbers of the right type and range")


@dataclass(frozen=True, config=CONFIG)
class Spec(Header):
    """Everything needed to use a network; ``calibration`` is fitted on validation images, ``None`` without them.

    Example:
        >>> from mixmo.header import Preparation
        >>> data = Preparation(channels=3, interpolation="bicubic", mean=[0.5], std=[0.25], crop_size=None)
        >>> spec = Spec(["cat", "dog"], (8, 8), data)
        >>> Spec.from_json(spec.to_json()) == spec
        True
    """

    calibration: Annotated[AnyCalibration | None, PlainValidator(_parse_calibration)] = None

    def __post_init__(self) -> None:
        if (calibration := self.calibration) is None:
            return
        if isinstance(calibration, LabelCalibration) != self.multi_label or (
            isinstance(calibration, LabelCalibration) and len(calibration.thresholds) != len(self.classes)
        ):
            raise ValueError("its calibration is for other classes")

    @cached_property
    def _crop(self) -> CenterCrop:
        return CenterCrop(self.data)

    def views(self, images: Tensor, tta: Augmentations = "none") -> list[Tensor]:
        """Return the network's inputs for images (B, H, W, C) uint8, a tensor (B, C, h, w) for each view."""
        return self._crop.views(images, tta)

    def to_json(self, **more: Any) -> str:
        """Return JSON of the description and ``more``, such as a digest."""
        content = self.to_dict() | more
        if (calibration := self.calibration) is not None:
            columns = {key: column.tolist() for key, column in to_columns(calibration).items()}
            content["calibration"] = {"temperature": calibration.temperature} | columns
        return json.dumps(content)  # ASCII: names of classes may be no valid Unicode

    @classmethod
    def from_json(cls, text: str, where: str = "its description", checked_digest: bool = True) -> Spec:
        """Parse the output of :meth:`to_json`, read from ``where``; refuse a newer format or damage.

        A description that names a digest is refused if ``checked_digest`` is false.
        """
        damaged = f"{where} is damaged, or not mixmo's"
        with explain_errors(damaged, ValueError, RecursionError):
            content = json.loads(text)
        if not isinstance(content, dict):
            raise InputError(f"{damaged}: it is not a mapping.")
        if DIGEST in content and not checked_digest:
            raise InputError(f"{damaged}: it names a digest, but the file has none.")
        return cls.from_dict({key: value for key, value in content.items() if key not in ("files", DIGEST)}, where)


def write_description(folder: Path, spec: Spec) -> None:
    """Write the description of a folder, with digests of itself and of the folder's files."""
    token = placeholder()
    digests = file_digests(folder, sorted(file.name for file in folder.iterdir() if file.name != SPEC))
    write_text(folder / SPEC, spec.to_json(files=digests, **{DIGEST: token}))
    write_digest(folder / SPEC, token)


def describe_run(run: TrainedRun) -> Spec:
    """Describe a run's network; needs neither its configuration nor its dataset."""
    run.warn_of_changes()
    header = {field.name: getattr(run.header, field.name) for field in fields(Header)}
    if timm_scheme(run.header.backbone) == "local-dir":
        header |= _describe_folder(run.header)
    return Spec(**header, calibration=load_cached_calibration(run))


def _describe_folder(header: Header) -> dict[str, Any]:
    """Return timm's name and options of a backbone from a local folder, which others do not have."""
    with explain_errors(f"the folder of {header.backbone} does not describe a network"):
        content = read_local_config(header.backbone)
        options = dict(content.get("model_args") or {}) | header.options
        for key in ("num_classes", "in_chans"):  # of the weights that training started from
            options.pop(key, None)
        return {"backbone": content["architecture"], "options": options}
