"""Self-contained HTML pages: sections of charts, images and tables, and the one template that shows them."""

from __future__ import annotations

import base64
import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from mixmo.errors import InputError, reason
from mixmo.escaping import printable
from mixmo.reporting.charts import DARK, STYLE
from mixmo.reporting.text_table import TextTable

logger = logging.getLogger("mixmo")

LARGEST = 160
"""Pixels of the longer side of a photo on a page."""


class Picture(NamedTuple):
    """A chart or an image of a page, as a ``data:`` address; where it could not be drawn, the caption says so."""

    uri: str
    caption: Sequence[str]
    alt: str


@dataclass(frozen=True)
class Section:
    """A part of a page; its contents are shown in this order.

    Attributes:
        heading: Above it; none where empty.
        text: A sentence in a softer colour.
        cards: Metrics as cards, by the names of their parts (:func:`mixmo.reporting.headline.cards`).
        plots: Charts side by side where there is room.
        images: Test images under headings.
        wide: Pictures that are scrolled on narrow screens.
        tables: Tables.
        notes: Sentences.
        listings: Texts in lines, by their heading.
        inside: Sections within it.
        folded: Whether a click opens it.
    """

    heading: str = ""
    text: str = ""
    cards: Sequence[Mapping[str, str]] = ()
    plots: Sequence[Picture] = ()
    images: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    wide: Sequence[Picture] = ()
    tables: Sequence[TextTable] = ()
    notes: Sequence[str] = ()
    listings: Mapping[str, str] = field(default_factory=dict)
    inside: Sequence[Section] = ()
    folded: bool = False


def _make_printable(value: Any) -> Any:
    """Make text printable on its way into a page; Jinja2 escapes it after that."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


ENVIRONMENT = Environment(
    loader=PackageLoader("mixmo.reporting"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_make_printable,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return a page, which begins with the sentence ``lead``."""
    return ENVIRONMENT.get_template("page.html").render(title=title, lead=lead, sections=sections)


def log_missing(error: InputError) -> str:
    """Log that something is missing on a page, and return the sentence that replaces it."""
    logger.warning("%s", printable(str(error)))
    return f"{error} It is left out."


def try_to_draw(draw: Callable[[], list[Picture]], description: str) -> list[Picture]:
    """Return what ``draw`` returns; if it fails, log a warning and return a sentence in place of that part."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font lacks
            return draw()
    except Exception as error:  # a page without one picture is better than none
        sentence = f"The picture {description!r} could not be drawn: {reason(error)}."
        logger.warning("%s", printable(sentence))
        return [Picture("", [sentence], "")]


def chart(draw: Callable[..., Figure], *values: Any, caption: str, alt: str = "") -> Picture:
    """Return what Matplotlib draws as a vector plot of the page; a sentence, and a warning, where that fails."""

    def make() -> list[Picture]:
        with matplotlib.rc_context(STYLE):
            return [Picture(svg_uri(draw(*values)), [caption], alt or caption)]

    return try_to_draw(make, caption)[0]


def svg_uri(figure: Figure) -> str:
    """Return a figure in the colours of :mod:`mixmo.reporting.charts` as an SVG, which is dark on dark pages."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.04, metadata={"Date": None})
    svg, dark = buffer.getvalue(), ""
    for number, (light_color, dark_color) in enumerate(DARK.items()):
        svg = svg.replace(light_color, f"var(--c{number}, {light_color})")
        dark += f"--c{number}: {dark_color}; "
    rule = f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}</style>"
    return data_uri("svg+xml", svg.replace("</style>", rule, 1).encode())


def png_of(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    about = {"Software": "mixmo"}
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white", metadata=about)
    return buffer.getvalue()


def photo_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """Return an image (H, W, C) uint8 as an address, made smaller if it is large; of many bands the first three."""
    shown = pixels[..., 0] if pixels.shape[2] < 3 else pixels[..., :3]
    image = Image.fromarray(np.ascontiguousarray(shown))
    image.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return data_uri("png", buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Return the content of a picture of a kind (``png``, ``svg+xml``) as an address that a page can hold."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
