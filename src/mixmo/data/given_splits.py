"""The splits passed to ``mixmo.fit``, and the settings that follow from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from mixmo.config.plan import flatten
from mixmo.config.recipes import Recipe
from mixmo.data.given import GIVEN, DatasetImages, dataset_of, has_float_images, infer_channels, open_given
from mixmo.data.sources import Source
from mixmo.errors import InputError
from mixmo.integrations.lightning import read_loaders
from mixmo.validation import to_list

log = logging.getLogger("mixmo")

PREPARING = dict.fromkeys(("image_size", "crop_size", "interpolation", "scale", "padding_mode"), None)
PREPARING |= {"augmentation": "crop", "policy": "none", "color_jitter": 0, "erasing": 0, "flip": 0, "padding": 0}
PREPARING |= {"on_error": "raise"}  # they are not read in advance, so damaged ones cannot be left out
"""Settings of ``data`` that do not apply to images that a Dataset prepares, with the values that change nothing."""
NORMALISING = {"window": None, "mean": 0, "std": 1}
"""The same for floating-point images."""
PREPARED_BY = ("image_size", "crop_size", "mean", "std")
"""Settings of a recipe for its own dataset that apply to other images, too."""


def warn_of_preprocessing(recipe: str | Path | None, base: Recipe, overrides: Mapping[str, Any]) -> None:
    """Warn of a recipe's sizes and normalisation, which also apply to other images."""
    settings = {name: value for name, value in flatten(base) if value is not None and name not in overrides}
    used = [f"{key} {settings[name]}" for key in PREPARED_BY if (name := f"data.{key}") in settings]
    if used:
        log.warning("images are prepared as recipe %s says: %s; set these for your own.", recipe, ", ".join(used))


def open_sources(train: Any, val: Any, test: Any, on_error: Any) -> tuple[str | None, dict[str, Source] | None]:
    """Return the dataset's name and the sources given in its place; either may be ``None``."""
    if val is not None or test is not None:
        if train is None:
            raise InputError("val or test is given without train; give train, too.")
        if isinstance(train, str | LightningDataModule):
            what = f"{train!r}, a dataset by name" if isinstance(train, str) else "a LightningDataModule"
            raise InputError(f"train is {what}, which has its own val and test; leave them out.")
    if train is None or isinstance(train, str):
        return train, None
    if isinstance(train, LightningDataModule):
        train, val, test = map(dataset_of, read_loaders(train), ("train", "validation", "test"))
    given = {"train": train, "validation": val, "test": test}
    datasets = {split: dataset_of(each, split) for split, each in given.items()}
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if given[split] is not None and datasets[split] is datasets[other]:
            raise InputError(f"{split} is the same object as {other}; give different images.")
    sources = {"train": open_given(given.pop("train"), "train", on_error=on_error)}
    classes, multi_label = sources["train"].classes, sources["train"].multi_label
    names = classes if multi_label or classes != list(map(str, range(len(classes)))) else None
    sources |= {split: open_given(each, split, names, on_error) for split, each in given.items() if each is not None}
    if len(classes) < 2:
        count = f"one class only ({classes[0]})" if classes else "no class, since no image has a label"
        raise InputError(f"train has {count}; a classifier needs two or more.")
    floats = {split: has_float_images(source) for split, source in sources.items()}
    if len(set(floats.values())) > 1:
        raise InputError(
            f"{' and '.join(split for split, is_float in floats.items() if is_float)} images are floating point, the "
            "others are not; convert all of them to one type."
        )
    return GIVEN, sources


def warn_of_random_validation(sources: Mapping[str, Source]) -> None:
    """Warn if validation images are held out of a Dataset with random transforms."""
    if "validation" not in sources and getattr(sources["train"].images, "is_random", False):
        log.warning(
            "validation images are held out of train, whose random transforms change them, too; pass val, a Dataset "
            "without random transforms, or set validation=0."
        )


def set_data(overrides: dict[str, Any], sources: Mapping[str, Source]) -> None:
    """Set the settings that follow from the images: channels, multi-label, and whether a Dataset prepares them."""
    train = sources["train"]
    datasets = [source.images for source in sources.values() if isinstance(source.images, DatasetImages)]
    prepared = overrides.pop("data.own_transforms", False) or any(images.prepared for images in datasets)
    if prepared and not isinstance(train.images, DatasetImages):
        raise InputError(
            "own_transforms is true, or a Dataset transforms validation or test images, but train is not a Dataset; "
            "give all images as Datasets."
        )
    for images in datasets:  # of validation images too, although their transforms are not random
        images.prepared = prepared
    if "data.channels" not in overrides:
        overrides["data.channels"] = infer_channels(train)
    overrides.setdefault("data.multi_label", train.multi_label)
    if not prepared:
        return
    floats = has_float_images(train)
    for key, neutral in (PREPARING | (NORMALISING if floats else {})).items():
        value = to_list(overrides.get(f"data.{key}"))
        if any(each not in (None, neutral) for each in (value if isinstance(value, list) else [value])):
            why = "are floating point" if floats else "come from a Dataset with random transforms"
            raise InputError(
                f"{key} is {value!r}, but the images {why} and are not processed further; leave it out, or give "
                "integers or PIL images without such transforms."
            )
    overrides["data.own_transforms"] = True
    overrides.setdefault("data.image_size", None)  # overrides a recipe, whose size is for its own images
    overrides.setdefault("data.crop_size", None)
    if floats:
        overrides.setdefault("data.mean", [0.0])
        overrides.setdefault("data.std", [1.0])
