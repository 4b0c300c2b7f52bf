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

PREPARATION = tuple(field.name for field in fields(Preparation))


def is_run(pretrained: bool | str) -> bool:
    """Return whether ``model.pretrained`` is a run's folder: not true (timm's weights), nor a weights file."""
    return isinstance(pretrained, str) and not os.path.isfile(pretrained)


def inherit_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that follow from ``model.pretrained``, unless a recipe sets them.

    A run determines the backbone and the preparation of images. timm's ``pretrained_cfg`` determines mean, std,
    interpolation and, if ``image_size`` is not set, the sizes of the crop, c, and of the image, floor(c / crop_pct).

    Example:
        >>> settings = inherit_settings({"model.pretrained": True, "model.backbone": "resnet18"})
        >>> settings["data.mean"], settings["data.crop_size"], settings["data.image_size"]
        ([0.485, 0.456, 0.406], 224, 235)
    """
    pretrained = values.get("model.pretrained")
    if not pretrained or not isinstance(pretrained, bool | str):
        return {}
    settings = _read_run(Path(str(pretrained))) if is_run(pretrained) else _read_weights(values)
    return {name: value for name, value in settings.items() if name not in values}


def _read_run(folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    if not os.path.isfile(file):  # reported when the network is built
        return {}
    content = read_yaml(file, "configuration")
    model, data = (value if isinstance(value := content.get(name), Mapping) else {} for name in ("model", "data"))
    settings = {f"model.{key}": model[key] for key in ("backbone", "options") if key in model}
    return settings | {f"data.{key}": data[key] for key in PREPARATION if key in data}


def _read_weights(values: Mapping[str, Any]) -> dict[str, Any]:
    backbone = str(values.get("model.backbone", ""))
    if timm_scheme(backbone) == "hf-hub" and not {"data.mean", "data.std"} <= values.keys():
        raise InputError(
            f"the preprocessing of {backbone} is unknown before its download; set data.mean and data.std (and "
            "data.crop_size) according to its page."
        )
    if (cfg := _pretrained_cfg(backbone)) is None:
        return {}
    channels = values.get("data.channels", 3)
    settings: dict[str, Any] = {}
    for key in ("mean", "std"):
        if numbers := [float(number) for number in cfg.get(key) or ()]:
            settings[f"data.{key}"] = numbers if channels == len(numbers) else [sum(numbers) / len(numbers)]
    if cfg.get("interpolation") in ("bicubic", "bilinear"):
        settings["data.interpolation"] = cfg["interpolation"]
    if "data.image_size" not in values:
        crop = _sides(values.get("data.crop_size")) or list((cfg.get("input_size") or (224, 224))[-2:])
        size = [math.floor(side / (cfg.get("crop_pct") or 1)) for side in crop]
        for key, (height, width) in {"crop_size": crop, "image_size": size}.items():
            settings[f"data.{key}"] = height if height == width else [height, width]
    return settings


def _sides(size: Any) -> list[int]:
    """Return height and width of a size in a recipe; empty if it is missing or invalid, which is reported later."""
    sides = size if isinstance(size, list | tuple) else [size, size]
    return list(sides) if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides) else []


def _pretrained_cfg(backbone: str) -> dict[str, Any] | None:
    """Return timm's metadata of a backbone's weights, without a download; ``None`` if there is none."""
    if timm_scheme(backbone) == "local-dir":
        try:
            return dict(read_local_config(backbone)["pretrained_cfg"])
        except (OSError, ValueError, KeyError, TypeError):  # reported when the network is built
            return None
    cfg = timm.get_pretrained_cfg(backbone)
    return None if cfg is None else cfg.to_dict()  # type: ignore[no-untyped-call]


def read_local_config(backbone: str) -> dict[str, Any]:
    """Return timm's description of a backbone ``local-dir:FOLDER``; raises what reading and parsing the file raise."""
    content: dict[str, Any] = json.loads(Path(backbone.partition(":")[2], "config.json").read_text("utf-8"))
    return content
