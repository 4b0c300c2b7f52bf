"""The settings of a run's images and of how batches are made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mixmo.errors import InputError, one_of
from mixmo.pairing import check_input_repetition, check_repetition

LARGEST_SIDE = 8192
LARGEST_BATCH = 2**20
PREPARATION = ("channels", "image_size", "crop_size", "interpolation", "mean", "std", "window", "own_transforms")
"""Settings that say what an image looks like to the network; checkpoints and exports keep them."""
MOST_WORKERS = 256


@dataclass
class DataSettings:
    """The images and how a batch is made of them.

    Args:
        name: digits, folder:PATH (a folder or a zip file), csv:PATH, webdataset:PATH, parquet:PATH, torch/cifar100,
            hfds/….
        root: Where timm's datasets lie.
        download: Whether a missing dataset may be downloaded.
        batch_size: B, the mixtures of a step.
        batch_repetition: b, how often an image stands in a batch.
        input_repetition: rho, share of mixtures whose members see one image; above 0 it helps networks that are short
            of width or passes.
        input_repetition_end: rho at the end of training, reached linearly in steps; null keeps input_repetition.
        repeat: Repeat indices (every copy is augmented on its own) or augmented pixels.
        test: Share of each class drawn for testing where a folder or a table has no splits.
        validation: Share of the training set held out for selection, where the dataset has no validation set of its
            own; 0 is without, the published protocol.
        images_per_class: Training images of each class, drawn after the validation images; the others are not used, but
            for digits, where they join the test set. null takes all.
        split_seed: Seed of the draws above; null is the run's, so that runs of other seeds learn from other images, and
            0 for the test images, so that they are tested on the same.
        channels: 3 (RGB), 1 (grey), or 4, the bands of CMYK and RGBA files as they are.
        window: Values [low, high] of files with 16 or 32 bits or fractions that become 0 and 255, those beyond clipped;
            null takes the whole range of 16 bits.
        image_size: Input size: the side images are scaled and cropped to; null takes them as they are, all of one size.
        interpolation: How images are scaled: bicubic or bilinear, antialiased.
        crop_size: Side of the random crop in training and of the center crop in evaluation; null is the input size.
        augmentation: crop, at random from the padded image, as published; or photo, by kornia: a part of the image of
            any size and shape, scaled to the crop (RandomResizedCrop), and colours changed.
        padding: Pixels around the image, from which a crop is taken.
        padding_mode: What those pixels are: zeros (black), as published, or reflect, the image mirrored at its border.
        scale: Shares of the image's area that the part for photo has, least and most.
        color_jitter: How far photo changes brightness, contrast and saturation: by factors from 1 - it to 1 + it.
        flip: Whether half of the images are mirrored.
        policy: none, trivialaugment, or randaugment (two operations of strength 10), by kornia.
        erasing: Share of the images in which a rectangle is blackened, by kornia.
        mean: Subtracted from each channel, in [0, 1].
        std: Divides each channel, in [0, 1].
        in_memory: Keep decoded images on the device; null decides by their size. Partners for pixels.kind are then
            drawn from the whole set, else from the batch.
        workers: Processes that decode streamed images.
        shuffle_shards: Tar shards or Parquet row groups that are shown at a time, their images mixed.
        on_error: Stop at images that cannot be read (raise), or continue without them (skip).
        own_transforms: Whether a program's Dataset prepares images by transforms of its own; found out, not set.
        eval_batch_size: Images in one evaluation batch; null takes the training batch, on a GPU four times that.
    """

    name: str = "torch/cifar100"
    root: str = "data"
    download: bool = False
    batch_size: int = 64
    batch_repetition: int = 1
    input_repetition: float = 0.0
    input_repetition_end: float | None = None
    repeat: Literal["index", "pixels"] = "index"
    test: float = 0.2
    validation: float = 0.1
    images_per_class: int | None = None
    split_seed: int | None = None
    channels: Literal[1, 3, 4] = 3
    window: list[float] | None = None
    image_size: int | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_size: int | None = None
    augmentation: Literal["crop", "photo"] = "crop"
    padding: int = 4
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    scale: list[float] = field(default_factory=lambda: [0.35, 1.0])
    color_jitter: float = 0.4
    flip: bool = True
    policy: Literal["none", "trivialaugment", "randaugment"] = "none"
    erasing: float = 0.0
    mean: list[float] = field(default_factory=lambda: [0.5])
    std: list[float] = field(default_factory=lambda: [0.5])
    in_memory: bool | None = None
    workers: int = 2
    shuffle_shards: int = 16
    on_error: Literal["raise", "skip"] = "raise"
    own_transforms: bool = False
    eval_batch_size: int | None = None

    @property
    def preparation(self) -> dict[str, Any]:
        """The settings of :data:`PREPARATION`."""
        return {key: getattr(self, key) for key in PREPARATION}

    @property
    def evaluation_size(self) -> int:
        """Images in one evaluation batch."""
        return self.eval_batch_size or self.batch_size

    def seed_of_split(self, seed: int) -> int:
        """Return the seed that draws validation images and those of ``images_per_class`` in a run with a seed."""
        return seed if self.split_seed is None else self.split_seed

    def input_repetition_at(self, progress: float) -> float:
        """Return rho when a share of the training steps is done."""
        start, end = self.input_repetition, self.input_repetition_end
        return start if end is None else start + progress * (end - start)

    def check_members(self, num_members: int) -> None:
        """Refuse shares of equal inputs that leave that many members nothing to tell apart."""
        for key in ("input_repetition", "input_repetition_end"):
            if (share := getattr(self, key)) is not None:
                check_input_repetition(share, num_members, f"data.{key}")

    def __post_init__(self) -> None:
        for key in ("batch_size", "eval_batch_size"):
            if (size := getattr(self, key)) is not None and not 1 <= size <= LARGEST_BATCH:
                raise InputError(f"data.{key} is {size}; it lies between 1 and {LARGEST_BATCH}.")
        check_repetition(self.batch_size, self.batch_repetition)
        self.check_members(1)
        if not 0 <= self.validation < 1:
            raise InputError(f"data.validation is {self.validation}; it is a share from 0 to below 1.")
        if not 0 < self.test < 1:
            raise InputError(f"data.test is {self.test}; it is a share between 0 and 1.")
        if self.images_per_class is not None and self.images_per_class < 1:
            raise InputError(f"data.images_per_class is {self.images_per_class}; it is 1 or more, or null for all.")
        if self.split_seed is not None and self.split_seed < 0:
            raise InputError(f"data.split_seed is {self.split_seed}; it is 0 or more, or null for the run's seed.")
        for key, most in (("padding", LARGEST_SIDE), ("workers", MOST_WORKERS)):
            if not 0 <= getattr(self, key) <= most:
                raise InputError(f"data.{key} is {getattr(self, key)}; it lies between 0 and {most}.")
        if self.shuffle_shards < 1:
            raise InputError(f"data.shuffle_shards is {self.shuffle_shards}; it is 1 or more.")
        for key in ("image_size", "crop_size"):
            if (side := getattr(self, key)) is not None and not 1 <= side <= LARGEST_SIDE:
                raise InputError(f"data.{key} is {side}; it is a number of pixels, from 1 to {LARGEST_SIDE}.")
        for key in ("mean", "std"):
            if len(getattr(self, key)) not in (1, self.channels):
                raise InputError(f"data.{key} has {len(getattr(self, key))} values for {self.channels} channels.")
        if self.window is not None and not (len(self.window) == 2 and self.window[0] < self.window[1]):
            raise InputError(f"data.window is {self.window}; it is two values, low and high, the first the lower.")
        if self.channels == 4 and (self.policy != "none" or (self.augmentation == "photo" and self.color_jitter)):
            raise InputError(
                "data.channels is 4, but data.policy and data.color_jitter change colours, which four bands are not; "
                "set --data.policy none and --data.color_jitter 0."
            )
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"data.scale is {self.scale}; it is two shares, least and most, above 0 and up to 1.")
        if not 0 <= self.color_jitter <= 1:
            raise InputError(f"data.color_jitter is {self.color_jitter}; it lies between 0 and 1.")
        if not 0 <= self.erasing <= 1:
            raise InputError(f"data.erasing is {self.erasing}; it is a share from 0 to 1.")
        one_of(self.on_error, ("raise", "skip"), "data.on_error")
        if min(self.std) < 1e-6:
            raise InputError(f"data.std is {self.std}; it is positive, 1e-6 or more.")
