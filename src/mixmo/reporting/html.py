"""Self-contained HTML pages from Jinja2 templates."""

from __future__ import annotations

import base64
import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from mixmo.errors import reason
from mixmo.names import printable
from mixmo.reporting.svg import inline_svg, page_style

logger = logging.getLogger("mixmo")

LARGEST = 160
"""Pixels of the longer side of an image on a page."""


EMPTY: Mapping[tuple[int, int], str] = {}


def _make_printable(value: Any) -> Any:
    """Make text printable on its way into a page; Jinja2 escapes it after that."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _listing(text: str) -> Markup:
    return Markup("\n").join(printable(line) for line in text.split("\n"))


ENVIRONMENT = Environment(
    loader=PackageLoader("mixmo.reporting"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_make_printable,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["listing"] = _listing


def render(template: str, **content: Any) -> str:
    """Return a page.

    Args:
        template: A file of ``templates/``.
        **content: Its variables; text is escaped.

    Raises:
        jinja2.UndefinedError: if one is missing.

    Example:
        >>> "<title>A &amp; B</title>" in render("base.html", title="A & B", lead="")
        True
    """
    return ENVIRONMENT.get_template(template).render(**content)


def part(macro: str, *content: Any) -> Markup:
    """Return what a macro of ``templates/parts.html`` makes of its arguments.

    Example:
        >>> part("sentence", "1 < 2")
        Markup('<p>1 &lt; 2</p>')
    """
    made = getattr(ENVIRONMENT.get_template("parts.html").module, macro)(*content)
    return Markup(made)


def render_safely(make: Callable[[], Markup], description: str) -> Markup:
    """Return a part of a page; a sentence, and a warning, where making it fails.

    Args:
        make: Returns the part. No error of its own costs more than the part.
        description: What it is, for the sentence.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font lacks
            return make()
    except Exception as error:  # a page without one picture is better than none
        sentence = f"The picture {description!r} could not be drawn: {reason(error)}."
        logger.warning("%s", printable(sentence))
        return part("sentence", sentence)


def chart(draw: Callable[[], Figure], caption: str, alt: str = "") -> Markup:
    """Return what Matplotlib draws as a vector plot of the page; a sentence, and a warning, where that fails.

    Args:
        draw: Returns the figure.
        caption: Below it.
        alt: What it shows, for those who cannot see it; the caption if empty.

    Example:
        >>> chart(lambda: Figure(figsize=(1, 1)), "Nothing").count("Nothing")
        2
    """

    def make() -> Markup:
        with page_style():
            return part("plot", Markup(inline_svg(draw(), alt or caption)), caption)

    return render_safely(make, caption)


def png_of(figure: Figure, dpi: int = 110) -> bytes:
    r"""Return a figure as the content of a PNG file.

    Example:
        >>> png_of(Figure(figsize=(1, 1)))[:4]
        b'\x89PNG'
    """
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white", metadata={"Software": "mixmo"}
    )
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """Return a PNG file's content as an address that a page can hold.

    Example:
        >>> data_uri(b"abc")
        'data:image/png;base64,YWJj'
    """
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def image_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """Return an image (H, W, C) uint8 as an address, made smaller if it is large.

    Example:
        >>> image_uri(np.zeros((2, 2, 1), np.uint8)).startswith("data:image/png;base64,")
        True
    """
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[:, :, :3]))
    image.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return data_uri(buffer.getvalue())


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    notes: Sequence[str] = (),
    helps: Sequence[str] = (),
    best: Set[tuple[int, int]] = frozenset(),
    details: Mapping[tuple[int, int], str] = EMPTY,
) -> Markup:
    """Return a table of plain texts that scrolls sideways where it is too wide.

    Args:
        header: Headings.
        rows: Texts; the first of each row is its name.
        caption: Above it.
        notes: For each row, a line below its name.
        helps: For each heading, what it means.
        best: Row and column of the cells that get a star.
        details: Lines below cells, by row and column.

    Example:
        >>> "<td>0.5</td>" in table(["", "ratio"], [["member 0", "0.5"]])
        True
    """
    return part("table", header, rows, caption, notes, helps, best, details)
