"""Descriptions of metrics: name, meaning, direction and unit, declared by the class that computes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

DIRECTIONS = {True: "Higher is better.", False: "Lower is better.", None: ""}
ARROWS = {True: "↑", False: "↓", None: ""}
COST_UNITS = ("M", "ms", "min")
"""Units of values that span orders of magnitude: fixed digits would round small ones to 0."""


@dataclass(frozen=True)
class Description:
    """How a metric is named, explained and printed.

    Attributes:
        name: Short enough for a column heading.
        meaning: One sentence.
        higher_is_better: ``None`` if neither is better.
        unit: Printed after the number, such as ``%``.
        factor: Applied to the value before printing.
        digits: Decimals.

    Example:
        >>> accuracy = describe_share("Accuracy", "Share of correct images.", higher_is_better=True)
        >>> accuracy.heading, accuracy.column, accuracy.help
        ('Accuracy ↑', 'Accuracy, %', 'Share of correct images. Higher is better.')
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
        """The name and an arrow in the better direction."""
        return f"{self.name} {ARROWS[self.higher_is_better]}".strip()

    @property
    def column(self) -> str:
        """The name and the unit, as a column heading."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def help(self) -> str:
        """The meaning and which direction is better."""
        return f"{self.meaning} {DIRECTIONS[self.higher_is_better]}".strip()

    @property
    def brief(self) -> Description:
        """The same with one digit fewer, for cards and text."""
        return replace(self, digits=max(1, self.digits - 1))

    def number(self, value: float, sign: bool = False) -> str:
        """Format a value without its unit, costs with at least two significant digits; a dash for NaN.

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
        if self.unit in COST_UNITS and abs(shown) > 1e-6:
            digits = max(digits, 1 - math.floor(math.log10(abs(shown))))
        return f"{shown:{'+' if sign else ''}.{digits}f}".replace("-", "−")

    def text(self, value: float) -> str:
        """Format a value with its unit."""
        number = self.number(value)
        return number if number == "–" or not self.unit else f"{number} {self.unit}"

    def interval(self, low: float, high: float, sign: bool = False) -> str:
        """Format an interval; empty for NaN."""
        return "" if math.isnan(low) else f"[{self.number(low, sign)}, {self.number(high, sign)}]"


Descriptions = Mapping[str, Description]
"""Descriptions by key of ``test.json``."""


def describe_share(name: str, meaning: str, higher_is_better: bool | None, digits: int = 2) -> Description:
    """Return the description of a share, printed in per cent."""
    return Description(name, meaning, higher_is_better, "%", 100, digits)
