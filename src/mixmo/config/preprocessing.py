"""Preprocessing defaults inherited from pretrained weights."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import timm

from mixmo.errors import InputError
from mixmo.escaping import timm_scheme
from mixmo.files import read_yaml
from mixmo.header import Preparation

PREPARATION = tuple(each.name for each in fields(Preparation))


def is_run(pretrained: bool | str) -> bool:
    """Return whether ``model.pretrained`` is a run's folder, rather than timm's weights (true) or a file of weights."""
    return isinstance(pretrained, str) and not os.path.isfile(pretrained)


def inherit_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that follow from ``model.pretrained`` where a recipe does not set them.

    A run determines its backbone and how images are prepared. Pretrained weights determine what timm's
    ``pretrained_cfg`` of the backbone says: mean, std, interpolation and, where neither size is set, the size of the
    crop, c, and of the image that it is cut from, floor(c / crop_pct).

    Example:
        >>> found = inherit_settings({"model.pretrained": True, "model.backbone": "resnet18"})
        >>> found["data.mean"], found["data.crop_size"], found["data.image_size"]
        ([0.485, 0.456, 0.406], 224, 235)
    """
    pretrained = values.get("model.pretrained")
    if not pretrained or not isinstance(pretrained, bool | str):
        return {}
    found = _read_run(Path(str(pretrained))) if is_run(pretrained) else _read_weights(values)
    return {name: value for name, value in found.items() if name not in values}


def _read_run(folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    if not os.path.isfile(file):  # building the network reports it
        return {}
    content = read_yaml(file, "configuration")
    model, data = (own if isinstance(own := content.get(each), Mapping) else {} for each in ("model", "data"))
    found = {f"model.{key}": model[key] for key in ("backbone", "options") if key in model}
    return found | {f"data.{key}": data[key] for key in PREPARATION if key in data}


def _read_weights(values: Mapping[str, Any]) -> dict[str, Any]:
    backbone = str(values.get("model.backbone", ""))
    if timm_scheme(backbone) == "hf-hub" and not {"data.mean", "data.std"} <= values.keys():
        raise InputError(
            f"how images were prepared for {backbone} is not known before it is downloaded: set data.mean and data.std "
            "(and data.crop_size) as its page says."
        )
    if (known := _pretrained_cfg(backbone)) is None:
        return {}
    channels = values.get("data.channels", 3)
    found: dict[str, Any] = {}
    for key in ("mean", "std"):
        if numbers := [float(number) for number in known.get(key) or ()]:
            found[f"data.{key}"] = numbers if channels == len(numbers) else [sum(numbers) / len(numbers)]
    if known.get("interpolation") in ("bicubic", "bilinear"):
        found["data.interpolation"] = known["interpolation"]
    if "data.image_size" not in values:
        crop = _sides(values.get("data.crop_size")) or list((known.get("input_size") or (224, 224))[-2:])
        size = [math.floor(side / (known.get("crop_pct") or 1)) for side in crop]
        for key, (height, width) in {"crop_size": crop, "image_size": size}.items():
            found[f"data.{key}"] = height if height == width else [height, width]
    return found


def _sides(size: Any) -> list[int]:
    """Return the height and the width that a recipe sets, not checked yet; nothing where it sets none."""
    sides = size if isinstance(size, list | tuple) else [size, size]
    return list(sides) if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides) else []


def _pretrained_cfg(backbone: str) -> dict[str, Any] | None:
    """Return timm's metadata of a backbone's weights without a download; ``None`` if there is none."""
    if timm_scheme(backbone) == "local-dir":
        file = Path(backbone.partition(":")[2]) / "config.json"
        try:
            return dict(json.loads(file.read_text("utf-8"))["pretrained_cfg"])
        except (OSError, ValueError, KeyError, TypeError):  # reported when the network is built
            return None
    known = timm.get_pretrained_cfg(backbone)
    return None if known is None else known.to_dict()  # type: ignore[no-untyped-call]
