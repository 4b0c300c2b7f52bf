"""A metric's name, meaning, direction and unit, which the class that computes it declares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

DIRECTIONS = {True: "Higher is better.", False: "Lower is better.", None: ""}
ARROWS = {True: "↑", False: "↓", None: ""}
SIZES = ("M", "ms", "min")
"""Units of values that span orders of magnitude, where a fixed number of digits would round small ones to 0."""


@dataclass(frozen=True)
class Description:
    """How a metric is named, explained and printed.

    Attributes:
        name: In words, short enough for the heading of a column.
        meaning: One sentence.
        higher_is_better: ``None`` where it depends.
        unit: After the number, such as ``%``.
        factor: From the value to the printed number.
        digits: After the point.

    Example:
        >>> accuracy = describe_share("Accuracy", "Share of right images.", higher_is_better=True)
        >>> accuracy.heading, accuracy.column, accuracy.help
        ('Accuracy ↑', 'Accuracy, %', 'Share of right images. Higher is better.')
        >>> accuracy.text(0.5), accuracy.brief.text(0.5), accuracy.interval(0.25, 0.75)
        ('50.00 %', '50.0 %', '[25.00, 75.00]')
    """

    name: str
    meaning: str
    higher_is_better: bool | None = None
    unit: str = ""
    factor: float = 1.0
    digits: int = 4

    @property
    def heading(self) -> str:
        """The name and an arrow to the better side."""
        return f"{self.name} {ARROWS[self.higher_is_better]}".strip()

    @property
    def column(self) -> str:
        """The name and the unit, as the heading of a column."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def help(self) -> str:
        """The meaning and which direction is better."""
        return f"{self.meaning} {DIRECTIONS[self.higher_is_better]}".strip()

    @property
    def brief(self) -> Description:
        """The same with one digit less, for cards and sentences."""
        return replace(self, digits=max(1, self.digits - 1))

    def number(self, value: float, sign: bool = False) -> str:
        """Return a value as text without its unit, costs with two significant digits or more; a dash if not defined.

        Example:
            >>> size = Description("Parameters", "", unit="M", factor=1e-6, digits=2)
            >>> [size.number(value) for value in (6480, 64_000_000, -11_000, math.nan)]
            ['0.0065', '64.00', '−0.011', '–']
        """
        if math.isnan(value):
            return "–"
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        shown, digits = value * self.factor, self.digits
        if self.unit in SIZES and abs(shown) > 1e-6:
            digits = max(digits, 1 - math.floor(math.log10(abs(shown))))
        return f"{shown:{'+' if sign else ''}.{digits}f}".replace("-", "−")

    def text(self, value: float) -> str:
        """Return a value as text with its unit."""
        number = self.number(value)
        return number if number == "–" or not self.unit else f"{number} {self.unit}"

    def interval(self, low: float, high: float, sign: bool = False) -> str:
        """Return an interval as text; nothing if it is not defined."""
        return "" if math.isnan(low) else f"[{self.number(low, sign)}, {self.number(high, sign)}]"


Descriptions = Mapping[str, Description]
"""By the keys of ``test.json``."""


def describe_share(name: str, meaning: str, higher_is_better: bool | None, digits: int = 2) -> Description:
    """Return the description of a share, which is printed in per cent."""
    return Description(name, meaning, higher_is_better, "%", 100, digits)
