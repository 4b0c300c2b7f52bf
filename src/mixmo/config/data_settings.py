"""Settings of images and batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from mixmo.errors import InputError
from mixmo.header import LARGEST_SIDE, Channels, Deviations, Preparation, Size
from mixmo.pairing import count_distinct
from mixmo.validation import Boolean, Count, Integer, Neutral, Number, Numbers, Options, Share, Text, settings_class

LARGEST_BATCH = 2**20
MOST_WORKERS = 256

SPLIT_SETTINGS = ("validation", "test", "folds", "fold", "images_per_class")
"""Settings that determine the splits, in addition to their seed."""

COLUMNS = ("path", "label", "split", "group")
"""Roles of a table's columns."""

BatchSize = Annotated[Integer, Field(ge=1, le=LARGEST_BATCH)]


@settings_class("data")
class DataSettings:
    """The images, and how batches are made of them."""

    name: Text = "torch/cifar100"
    """digits, folder:PATH (a folder or a zip file), csv:PATH, webdataset:PATH, parquet:PATH, torch/cifar100, hfds/…."""
    root: Neutral[Text] = "data"
    """Folder of torchvision's datasets."""
    download: Neutral[Boolean] = False
    """Whether a missing dataset may be downloaded."""
    multi_label: Boolean = False
    """Whether images have any number of labels, separated by | in a table; the loss is then binary cross-entropy,
    summed over classes.
    """
    columns: Options = field(default_factory=dict)
    """Names of a table's columns if not the usual ones, such as {label: breed, group: patient}; path may be a pattern
    with columns, such as train/{id}.jpg.
    """
    batch_size: BatchSize = 64
    """B, mixtures per step."""
    batch_repetition: Count = 1
    """b, how often an image appears in a batch."""
    input_repetition: Share = 0.0
    """rho, share of mixtures whose members see the same image; above 0 it helps narrow networks and short training."""
    input_repetition_end: Share | None = None
    """rho at the end of training, reached linearly in steps; null keeps input_repetition."""
    test: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    """Share of each class drawn for testing if a folder or table has no splits."""
    folds: Annotated[Integer, Field(ge=2)] | None = None
    """k of a cross-validation: images (only training images, if there are splits) are divided into k folds, one of
    which is the test set; null means no cross-validation.
    """
    fold: Annotated[Integer, Field(ge=0)] = 0
    """Fold that is the test set, counted from 0; the others are for training and validation."""
    validation: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    """Share of the training set held out for validation if the dataset has no validation set; 0, as published, holds
    out none.
    """
    images_per_class: Count | None = None
    """Training images drawn per class, after the validation images; the others are not used (those of digits join the
    test set). null uses all.
    """
    split_seed: Annotated[Integer, Field(ge=0)] | None = None
    """Seed of the draws above; null is the run's seed, but 0 for test images and folds, so that all seeds are tested on
    the same images.
    """
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """Order of an epoch's training images: shuffle shows each once; balanced draws the same number, but all classes
    equally often: rare images repeat, some frequent ones are skipped that epoch.
    """
    channels: Channels = 3
    """3 (RGB), 1 (grey), or the number of bands in the files, used unconverted: 4 for CMYK and RGBA, 13 for a
    satellite's.
    """
    window: Numbers | None = None
    """Values [low, high] of images with 16 or 32 bits, or floats, that are mapped to 0 and 255; values outside are
    clipped. null maps the full range of 16 bits.
    """
    image_size: Size | None = None
    """Size that images are scaled and cropped to, a side or [height, width]; null keeps images, which must all have the
    same size.
    """
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Interpolation when scaling images, antialiased: bicubic or bilinear."""
    crop_size: Size | None = None
    """Size of the random crop in training and the center crop in evaluation, a side or [height, width]; null is the
    input size.
    """
    augmentation: Literal["crop", "photo"] = "crop"
    """crop, at random from the padded image, as published; or photo, RandomResizedCrop and colour jitter by kornia."""
    padding: Annotated[Integer, Field(ge=0, le=LARGEST_SIDE)] = 4
    """Pixels of padding around the image before a crop."""
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    """zeros (black), as published, or reflect, the image mirrored at its border."""
    scale: Numbers = field(default_factory=lambda: [0.35, 1.0])
    """Minimum and maximum share of the image's area in a photo crop."""
    color_jitter: Share = 0.4
    """Strength j of photo's jitter: factors of brightness, contrast and saturation are from 1 - j to 1 + j."""
    flip: Boolean = True
    """Whether images are mirrored with probability 1/2."""
    policy: Literal["none", "trivialaugment", "randaugment"] = "none"
    """none, trivialaugment, or randaugment (two operations of magnitude 10), by kornia."""
    erasing: Share = 0.0
    """Probability of random erasing, which blackens a rectangle, by kornia."""
    mean: Numbers = field(default_factory=lambda: [0.5])
    """Mean subtracted from pixels in [0, 1]: one value, or one per channel."""
    std: Deviations = field(default_factory=lambda: [0.5])
    """Standard deviation that pixels are divided by: one value, or one per channel."""
    in_memory: Neutral[Boolean | None] = None
    """Keep decoded images in device memory; null decides by their size. If so, partners for pixels.kind are drawn from
    the whole set, otherwise from the batch.
    """
    workers: Neutral[Annotated[Integer, Field(ge=0, le=MOST_WORKERS)]] = 2
    """Processes that decode streamed images."""
    on_error: Literal["raise", "skip"] = "raise"
    """raise stops at images that cannot be read; skip leaves them out."""
    own_transforms: Boolean = False
    """Whether images are prepared by a Dataset's own transforms; detected, unless only a few images are random."""
    eval_batch_size: Neutral[BatchSize | None] = None
    """Images per evaluation batch; null uses the training batch size, times four on a GPU."""

    @property
    def evaluation_size(self) -> int:
        """The evaluation batch size."""
        return self.eval_batch_size or self.batch_size

    def seed_of_split(self, seed: int) -> int:
        """Return the seed for drawing validation images and ``images_per_class`` in a run with ``seed``."""
        return seed if self.split_seed is None else self.split_seed

    @property
    def input_repetitions(self) -> tuple[float, float]:
        """Rho at the start and the end of training."""
        start, end = self.input_repetition, self.input_repetition_end
        return start, start if end is None else end

    def __post_init__(self) -> None:
        count_distinct(self.batch_size, self.batch_repetition)
        if self.fold and self.folds is None:
            raise InputError(f"data.fold is {self.fold}, but data.folds is not set; set it to the number of folds.")
        if self.fold >= (self.folds or 1):
            raise InputError(f"data.fold is {self.fold}, but data.folds is {self.folds}; folds are counted from 0.")
        for role, name in self.columns.items():
            if role not in COLUMNS or not isinstance(name, str):
                raise InputError(f"data.columns has {role}: {name!r}; it names columns for {', '.join(COLUMNS)}.")
        Preparation.of(self)  # checks their common settings
        recolours = self.policy != "none" or (self.augmentation == "photo" and self.color_jitter > 0)
        if recolours and self.channels not in (1, 3):
            raise InputError(
                f"data.channels is {self.channels}, but data.policy and data.color_jitter need 1 or 3; set "
                "data.policy to none and data.color_jitter to 0."
            )
        if self.multi_label and self.images_per_class is not None:
            raise InputError(
                f"data.images_per_class is {self.images_per_class}, which draws images class by class; leave it out "
                "with data.multi_label."
            )
        for key in ("mean", "std"):
            values = getattr(self, key)
            if max(values) > 1 and not self.own_transforms:
                raise InputError(
                    f"data.{key} is {values}, but pixels are divided by 255 first; divide it by 255, too (at most 1)."
                )
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"data.scale is {self.scale}; it must be two shares in (0, 1], the smaller first.")


def split_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of ``SPLIT_SETTINGS`` in a run's settings, as far as they are there, and the seed of its draws.

    Example:
        >>> split_settings({"seed": 3, "data": {"folds": 5, "flip": True}})
        {'folds': 5, 'split_seed': 3}
    """
    data = settings.get("data")
    data = data if isinstance(data, Mapping) else {}
    seed = settings.get("seed") if data.get("split_seed") is None else data["split_seed"]
    known = {key: data[key] for key in SPLIT_SETTINGS if key in data}
    return known if seed is None else known | {"split_seed": seed}
