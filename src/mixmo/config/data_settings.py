"""Settings of the images and the batches."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from mixmo.errors import InputError
from mixmo.header import LARGEST_SIDE, Channels, Deviations, Preparation, Size
from mixmo.pairing import check_repetition
from mixmo.validation import Boolean, Count, Integer, Neutral, Number, Numbers, Options, Share, Text, settings_class

LARGEST_BATCH = 2**20
MOST_WORKERS = 256

COLUMNS = ("path", "label", "split", "group")
"""What the columns of a table are."""

BatchSize = Annotated[Integer, Field(ge=1, le=LARGEST_BATCH)]


@settings_class("data")
class DataSettings:
    """The images and how a batch is made of them."""

    name: Text = "torch/cifar100"
    """digits, folder:PATH (a folder or a zip file), csv:PATH, webdataset:PATH, parquet:PATH, torch/cifar100, hfds/…."""
    root: Neutral[Text] = "data"
    """The folder of torchvision's datasets."""
    download: Neutral[Boolean] = False
    """Whether a missing dataset may be downloaded."""
    multi_label: Boolean = False
    """Whether an image has any number of labels, or none: a table's cell lists them with | between them. The loss is
    then binary cross-entropy, summed over classes.
    """
    columns: Options = field(default_factory=dict)
    """Columns of a table by other names than the usual ones, such as {label: breed, group: patient}; a path may be a
    pattern with columns in it, such as train/{id}.jpg.
    """
    batch_size: BatchSize = 64
    """B, the mixtures of a step."""
    batch_repetition: Count = 1
    """b, how often an image appears in a batch."""
    input_repetition: Share = 0.0
    """rho, share of mixtures whose members see the same image; above 0 it helps narrow networks and short
    trainings.
    """
    input_repetition_end: Share | None = None
    """rho at the end of training, reached linearly in steps; null keeps input_repetition."""
    test: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    """Share of each class drawn for testing where a folder or a table has no splits."""
    folds: Annotated[Integer, Field(ge=2)] | None = None
    """k of a cross-validation: the images (those for training, if there are splits) are divided into k folds, and one
    is the test set; null draws or takes the test set as above.
    """
    fold: Annotated[Integer, Field(ge=0)] = 0
    """The number of the fold that is the test set, from 0; the others are for training and validation."""
    validation: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    """Share of the training set held out for selection, where the dataset has no validation set of its own; 0 holds
    out none, as published.
    """
    images_per_class: Count | None = None
    """Training images of each class, drawn after the validation images; the others are not used (of digits,
    they join the test set). null takes all.
    """
    split_seed: Annotated[Integer, Field(ge=0)] | None = None
    """Seed of the draws above; null is the run's seed, so that other seeds train on other images, but 0 for test
    images and folds, so that all seeds are tested on the same.
    """
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """Training images of an epoch: shuffle shows each once; balanced shows as many, but every class equally often, so
    that images of rare classes are repeated, and some of frequent ones wait for other epochs.
    """
    channels: Channels = 3
    """3 (RGB), 1 (grey), or the number of bands that images have, as they are: 4 of CMYK and RGBA files, 13 of a
    satellite's.
    """
    window: Numbers | None = None
    """Values [low, high] of images with 16 or 32 bits or fractions that become 0 and 255; others are clipped. null
    takes the whole range of 16 bits.
    """
    image_size: Size | None = None
    """Input size, a side or [height, width], that images are scaled and cropped to; null takes them as they are, all
    of one size.
    """
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How images are scaled: bicubic or bilinear, antialiased."""
    crop_size: Size | None = None
    """Side, or [height, width], of the random crop in training and of the center crop in evaluation; null is the input
    size.
    """
    augmentation: Literal["crop", "photo"] = "crop"
    """crop, at random from the padded image, as published; or photo, by kornia: a part of the image of any size and
    shape, scaled to the crop (RandomResizedCrop), with colour jitter.
    """
    padding: Annotated[Integer, Field(ge=0, le=LARGEST_SIDE)] = 4
    """Pixels around the image, from which a crop is taken."""
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    """What those pixels are: zeros (black), as published, or reflect, the image mirrored at its border."""
    scale: Numbers = field(default_factory=lambda: [0.35, 1.0])
    """Smallest and largest share of the image's area that photo crops."""
    color_jitter: Share = 0.4
    """How far photo changes brightness, contrast and saturation: by factors from 1 - it to 1 + it."""
    flip: Boolean = True
    """Whether half of the images are mirrored."""
    policy: Literal["none", "trivialaugment", "randaugment"] = "none"
    """none, trivialaugment, or randaugment (two operations of strength 10), by kornia."""
    erasing: Share = 0.0
    """Share of the images in which a rectangle is blackened, by kornia."""
    mean: Numbers = field(default_factory=lambda: [0.5])
    """Subtracted from each channel, in [0, 1]."""
    std: Deviations = field(default_factory=lambda: [0.5])
    """Divides each channel, in [0, 1]."""
    in_memory: Neutral[Boolean | None] = None
    """Keep decoded images on the device; null decides by their size. Partners for pixels.kind are then drawn from
    the whole set, else from the batch.
    """
    workers: Neutral[Annotated[Integer, Field(ge=0, le=MOST_WORKERS)]] = 2
    """Processes that decode streamed images."""
    on_error: Literal["raise", "skip"] = "raise"
    """Stop at images that cannot be read (raise), or continue without them (skip)."""
    own_transforms: Boolean = False
    """Whether a program's Dataset prepares images by transforms of its own; detected, not set."""
    eval_batch_size: Neutral[BatchSize | None] = None
    """Images in one evaluation batch; null takes the training batch, on a GPU four times that."""

    @property
    def evaluation_size(self) -> int:
        """Images in one evaluation batch."""
        return self.eval_batch_size or self.batch_size

    def seed_of_split(self, seed: int) -> int:
        """Return the seed that draws validation images and those of ``images_per_class`` in a run with a seed."""
        return seed if self.split_seed is None else self.split_seed

    @property
    def input_repetitions(self) -> tuple[float, float]:
        """Rho at the start and at the end of training."""
        start, end = self.input_repetition, self.input_repetition_end
        return start, start if end is None else end

    def __post_init__(self) -> None:
        check_repetition(self.batch_size, self.batch_repetition)
        if self.fold and self.folds is None:
            raise InputError(f"data.fold is {self.fold}, but data.folds is not set; set it to the number of folds.")
        if self.fold >= (self.folds or 1):
            raise InputError(f"data.fold is {self.fold}, but data.folds is {self.folds}; folds are counted from 0.")
        if wrong := [f"{key}: {name!r}" for key, name in self.columns.items()
                     if key not in COLUMNS or not isinstance(name, str)]:  # fmt: skip
            raise InputError(f"data.columns has {wrong[0]}; it names columns for {', '.join(COLUMNS)}.")
        Preparation.of(self)  # checks what the two have in common
        recolours = self.policy != "none" or (self.augmentation == "photo" and self.color_jitter > 0)
        if recolours and self.channels not in (1, 3):
            raise InputError(
                f"data.channels is {self.channels}, but data.policy and data.color_jitter change colours, which these "
                "bands are not; set --data.policy none and --data.color_jitter 0."
            )
        if self.multi_label and self.images_per_class is not None:
            raise InputError(
                f"data.images_per_class is {self.images_per_class}, which draws images class by class; those with "
                "several labels (data.multi_label) cannot be drawn that way: leave it out."
            )
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"data.scale is {self.scale}; it is two shares, the smaller first, above 0 and up to 1.")
