"""Self-contained HTML pages: sections of charts, images and tables, rendered by one template."""

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

THUMBNAIL = 160
"""Largest side of a photo on a page, in pixels."""


class Picture(NamedTuple):
    """A chart or image as a ``data:`` URI; an empty URI if it could not be drawn, and the caption says why."""

    uri: str
    caption: Sequence[str]
    alt: str


@dataclass(frozen=True)
class Section:
    """A section of a page, with its contents in the order in which they are shown.

    Attributes:
        heading: Heading, or empty for none.
        text: Introduction, in a softer colour.
        cards: Metric cards (:func:`mixmo.reporting.headline.metric_cards`).
        plots: Charts, side by side if they fit.
        images: Test images by heading.
        wide: Pictures that scroll on narrow screens.
        tables: Tables.
        notes: Paragraphs.
        listings: Preformatted texts by heading.
        subsections: Nested sections.
        folded: Whether it is collapsed at first.
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
    subsections: Sequence[Section] = ()
    folded: bool = False


def _make_printable(value: Any) -> Any:
    """Make text printable before Jinja2 escapes it."""
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
    """Render a page with a title and an introduction, ``lead``."""
    return ENVIRONMENT.get_template("page.html").render(title=title, lead=lead, sections=sections)


def log_missing(error: InputError) -> str:
    """Log what is missing on a page, and return the text to show instead."""
    logger.warning("%s", printable(str(error)))
    return f"{error} It is left out."


def try_to_draw(draw: Callable[[], list[Picture]], description: str) -> list[Picture]:
    """Return the pictures of ``draw``; if it fails, log a warning and return a picture with only a message."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the font shows boxes instead
            return draw()
    except Exception as error:  # a page without one picture is better than none
        message = f"The picture {description!r} could not be drawn: {reason(error)}."
        logger.warning("%s", printable(message))
        return [Picture("", [message], "")]


def chart(draw: Callable[..., Figure], *values: Any, caption: str, alt: str = "") -> Picture:
    """Draw a Matplotlib figure as a vector plot (see :func:`try_to_draw`)."""

    def make() -> list[Picture]:
        with matplotlib.rc_context(STYLE):
            return [Picture(svg_uri(draw(*values)), [caption], alt or caption)]

    return try_to_draw(make, caption)[0]


def svg_uri(figure: Figure) -> str:
    """Return a figure in the colours of :mod:`mixmo.reporting.charts` as an SVG URI, with a dark mode."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.04, metadata={"Date": None})
    svg, dark = buffer.getvalue(), ""
    for number, (light_color, dark_color) in enumerate(DARK.items()):
        svg = svg.replace(light_color, f"var(--c{number}, {light_color})")
        dark += f"--c{number}: {dark_color}; "
    rule = f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}</style>"
    return data_uri("svg+xml", svg.replace("</style>", rule, 1).encode())


def encode_png(figure: Figure) -> bytes:
    """Encode a figure as PNG."""
    buffer = io.BytesIO()
    metadata = {"Software": "mixmo"}
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white", metadata=metadata)
    return buffer.getvalue()


def photo_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """Return an image (H, W, C) uint8 as a thumbnail's URI; of more than three bands, the first three."""
    shown = pixels[..., 0] if pixels.shape[2] < 3 else pixels[..., :3]
    image = Image.fromarray(np.ascontiguousarray(shown))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return data_uri("png", buffer.getvalue())


def data_uri(format: str, content: bytes) -> str:
    """Return a picture in a format (``png``, ``svg+xml``) as a ``data:`` URI."""
    return f"data:image/{format};base64,{base64.b64encode(content).decode()}"
