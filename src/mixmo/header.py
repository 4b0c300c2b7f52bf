"""The versioned header of saved networks.

Networks are rebuilt from a header and tensors, never from the training configuration, so that weights stay readable
when training settings change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, InstanceOf, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from mixmo.errors import InputError
from mixmo.validation import CONFIG, Boolean, Integer, Number, Numbers, describe_errors, settings_class, to_list

FORMAT = 2
"""Version of the header's format, increased when earlier versions of mixmo would misread a header."""

LARGEST_SIDE = 8192
MOST_MEMBERS = 100
MOST_CHANNELS = 512


def _take_sides(value: Any) -> Any:
    """Return a height and a width as a list; refuse anything else."""
    sides = to_list(value)
    if not isinstance(sides, list) or len(sides) != 2:
        raise ValueError("it must be a height and a width")
    return sides


Text = InstanceOf[str]  # names of files need not be valid Unicode
Side = Annotated[Integer, Field(ge=1, le=LARGEST_SIDE)]
Members = Annotated[Integer, Field(ge=1, le=MOST_MEMBERS)]
Channels = Annotated[Integer, Field(ge=1, le=MOST_CHANNELS)]
Sides = Annotated[list[Side], Strict(), BeforeValidator(_take_sides)]
Size = Side | Sides
"""A side of a square, or [height, width]."""
Deviations = Annotated[list[Annotated[Number, Field(ge=1e-6)]], Strict(), BeforeValidator(to_list)]


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (h, w) of a :data:`Size`."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@settings_class("data", frozen=True)
class Preparation:
    """How an image is prepared for a network.

    Example:
        >>> Preparation(channels=3, interpolation="bicubic", mean=[0.5, 0.5], std=[0.5], crop_size=None)
        Traceback (most recent call last):
        mixmo.errors.InputError: data.mean has 2 values for 3 channels.
    """

    channels: Channels
    """3 (RGB), 1 (grey), or the images' number of bands."""
    interpolation: Literal["bicubic", "bilinear"]
    """How images are scaled."""
    mean: Numbers
    """Subtracted from each channel, which is in [0, 1]."""
    std: Deviations
    """Divides each channel, which is in [0, 1]."""
    crop_size: Size | None
    """Side, or height and width, of the centre crop that the network sees; ``None`` is the whole image."""
    image_size: Size | None = None
    """Side, or height and width, that images are scaled to; ``None`` if all have one size already."""
    window: Numbers | None = None
    """Values [low, high] of integer (16 or 32 bits) or floating-point files that map to 0 and 255."""
    own_transforms: Boolean = False
    """Whether a user's Dataset prepared the images with its own transforms."""

    @property
    def takes_floats(self) -> bool:
        """Whether these transforms return floating-point tensors, the network's input: mean 0 and deviation 1."""
        return self.own_transforms and set(self.mean) == {0.0} and set(self.std) == {1.0}

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            if (count := len(getattr(self, key))) not in (1, self.channels):
                raise InputError(f"data.{key} has {count} values for {self.channels} channels.")
        if self.window is not None and not (len(self.window) == 2 and self.window[0] < self.window[1]):
            raise InputError(f"data.window is {self.window}; it must be two values, [low, high], with low < high.")

    @classmethod
    def of(cls, settings: Any) -> Self:
        """Return the preparation in the ``data`` section of a run's settings."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


@dataclass(frozen=True, config=CONFIG)
class Header:
    """The description of a saved network.

    Attributes:
        classes: The K class names.
        size: (H, W) of the images: scaled to cover it, then cropped at the centre.
        data: How images are prepared.
        backbone: timm's name of the backbone, or ``module NAME`` for a user's module.
        options: Further keywords of the timm model.
        num_members: M in training, also of a network that has been fused.
        mix_at: Module after which features are mixed; ``None`` is after the stem.
        multi_label: Whether an image may have several classes or none; probabilities are then sigmoids of the logits,
            not their softmax.

    Example:
        >>> data = Preparation(channels=1, interpolation="bicubic", mean=[0.5], std=[0.25], crop_size=None)
        >>> header = Header(["cat", "dog"], (8, 8), data, "wide_resnet10_1", num_members=2)
        >>> Header.from_dict(header.to_dict()) == header
        True
        >>> Header.from_dict(header.to_dict() | {"format": 99}, "a.ckpt")
        Traceback (most recent call last):
        mixmo.errors.InputError: a.ckpt is of format 99, but this version of mixmo reads formats up to 2: update mixmo.
    """

    classes: Annotated[list[Text], Field(min_length=1)]
    size: tuple[Side, Side]
    data: Preparation
    backbone: Text = ""
    options: dict[str, Any] = Field(default_factory=dict)
    num_members: Members = 1
    mix_at: Text | None = None
    multi_label: Boolean = False

    @property
    def input_size(self) -> tuple[int, int]:
        """(h, w) of the network's input, after the centre crop."""
        crop = self.data.crop_size
        return self.size if crop is None else height_and_width(crop)

    def to_dict(self) -> dict[str, Any]:
        """Return the header as plain values."""
        content = {field.name: getattr(self, field.name) for field in fields(Header)}
        return {"format": FORMAT} | content | {"size": list(self.size), "data": asdict(self.data)}

    @classmethod
    def from_dict(cls, content: Any, where: str = "the header") -> Self:
        """Parse the content of :meth:`to_dict`, of this or an earlier format; ``where`` is its file, for errors."""
        if not isinstance(content, Mapping):
            raise InputError(f"{where} is damaged, or not mixmo's: it has no header.")
        version = content.get("format")
        if type(version) is not int or version < 1:
            raise InputError(f"{where} is damaged, or not mixmo's: its header has the format {version!r}.")
        if version > FORMAT:
            raise InputError(
                f"{where} is of format {version}, but this version of mixmo reads formats up to {FORMAT}: update mixmo."
            )
        try:
            return TypeAdapter(cls).validate_python({key: value for key, value in content.items() if key != "format"})
        except ValidationError as error:
            raise InputError(f"{where} is damaged, or not mixmo's: {describe_errors(error, cls)[0]}") from error

    def sections(self) -> dict[str, dict[str, Any]]:
        """Return the sections ``model`` and ``data`` of a run's settings, as far as the header determines them."""
        model = {key: getattr(self, key) for key in ("backbone", "num_members", "options", "mix_at")}
        return {"model": model, "data": asdict(self.data) | {"multi_label": self.multi_label}}
