"""The versioned header of saved networks.

A network is rebuilt from its header and its tensors, never from the training configuration: settings of training may
come and go without making weights unreadable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, InstanceOf, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from mixmo.errors import InputError
from mixmo.validation import CONFIG, Boolean, Integer, Number, Numbers, describe_errors, settings_class, take_list

FORMAT = 2
"""The number of the header's format. It grows when earlier versions would misread a header."""

LARGEST_SIDE = 8192
MOST_MEMBERS = 100
MOST_CHANNELS = 512


def _take_sides(value: Any) -> Any:
    """Return two sides as a list; refuse anything else."""
    sides = take_list(value)
    if not isinstance(sides, list) or len(sides) != 2:
        raise ValueError("it must be a height and a width")
    return sides


Text = InstanceOf[str]  # names of files need not be valid Unicode
Side = Annotated[Integer, Field(ge=1, le=LARGEST_SIDE)]
Members = Annotated[Integer, Field(ge=1, le=MOST_MEMBERS)]
Channels = Annotated[Integer, Field(ge=1, le=MOST_CHANNELS)]
Sides = Annotated[list[Side], Strict(), BeforeValidator(_take_sides)]
Size = Side | Sides
"""The side of a square, or the height and the width of a rectangle."""
Deviations = Annotated[list[Annotated[Number, Field(ge=1e-6)]], Strict(), BeforeValidator(take_list)]


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (h, w) of a size as settings have it: a side, or both."""
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
    """3 (RGB), 1 (grey), or the number of bands that images have, as they are."""
    interpolation: Literal["bicubic", "bilinear"]
    """How images are scaled."""
    mean: Numbers
    """Subtracted from each channel, in [0, 1]."""
    std: Deviations
    """Divides each channel, in [0, 1]."""
    crop_size: Size | None
    """Side, or height and width, of the crop in the middle that the network sees; ``None`` is the whole image."""
    image_size: Size | None = None
    """Side, or height and width, that images were scaled to; ``None`` took them as they were, all of one size.
    """
    window: Numbers | None = None
    """Values [low, high] of files with 16 or 32 bits or fractions that become 0 and 255."""
    own_transforms: Boolean = False
    """Whether a program's Dataset prepared images by transforms of its own."""

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            if (count := len(getattr(self, key))) not in (1, self.channels):
                raise InputError(f"data.{key} has {count} values for {self.channels} channels.")
        if self.window is not None and not (len(self.window) == 2 and self.window[0] < self.window[1]):
            raise InputError(f"data.window is {self.window}; it is two values, low and high, the first the lower.")

    @classmethod
    def of(cls, settings: Any) -> Self:
        """Return the preparation set in the ``data`` section of a run's settings."""
        return cls(**{each.name: getattr(settings, each.name) for each in fields(cls)})


@dataclass(frozen=True, config=CONFIG)
class Header:
    """The description of a saved network.

    Attributes:
        classes: The K class names.
        size: (H, W) that images are brought to: scaled until they cover it, then cropped in their middle.
        data: How they are prepared.
        backbone: timm's name of the backbone, or ``module NAME`` of a program's own.
        options: More keywords of the timm model.
        num_members: M that were trained. A fused network is the average of as many.
        mix_at: Module behind which features are mixed; ``None`` is behind the stem.
        multi_label: Whether an image may have several of the classes, or none: probabilities are then the sigmoid of
            each logit, not their softmax.

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
        """(h, w) of the network's input."""
        crop = self.data.crop_size
        return self.size if crop is None else height_and_width(crop)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        own = {each.name: getattr(self, each.name) for each in fields(Header)}
        return {"format": FORMAT} | own | {"size": list(self.size), "data": asdict(self.data)}

    @classmethod
    def from_dict(cls, content: Any, where: str = "the header") -> Self:
        """Return what :meth:`to_dict` wrote; refuse a newer format, and damage. ``where`` is its file, for errors."""
        if not isinstance(content, Mapping):
            raise InputError(f"{where} is damaged, or not mixmo's: it has no header.")
        found = content.get("format")
        if type(found) is not int or found < 1:
            raise InputError(f"{where} is damaged, or not mixmo's: its header has the format {found!r}.")
        if found > FORMAT:
            raise InputError(
                f"{where} is of format {found}, but this version of mixmo reads formats up to {FORMAT}: update mixmo."
            )
        try:
            own = {key: value for key, value in content.items() if key != "format"}
            return TypeAdapter(cls).validate_python(own)
        except ValidationError as error:
            raise InputError(f"{where} is damaged, or not mixmo's: {describe_errors(error, cls)[0]}") from error

    def sections(self) -> dict[str, dict[str, Any]]:
        """Return it as the sections of a run's settings that it decides: ``model`` and ``data``."""
        own = {key: getattr(self, key) for key in ("backbone", "num_members", "options", "mix_at")}
        return {"model": own, "data": asdict(self.data) | {"multi_label": self.multi_label}}
