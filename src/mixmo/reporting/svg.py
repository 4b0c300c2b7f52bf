"""Matplotlib figures as inline SVG."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

from mixmo.names import printable

SVG, LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
INK = "#010203"
"""Stands for the colour of the page's text."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Those of Okabe and Ito, which can be told apart by the colour-blind; pages show lighter ones on dark."""
BLUE, RED = COLORS[:2]
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))

STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.prop_cycle": cycler(color=COLORS, linestyle=LINES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color",
         "grid.color"), INK,
    ),
}  # fmt: skip

ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", LINK[1:].partition("}")[0])


@contextmanager
def page_style() -> Iterator[None]:
    """Draw in the style of pages inside this context."""
    with matplotlib.rc_context(STYLE):
        yield


def inline_svg(figure: Figure, alt: str) -> str:
    """Return a figure as an ``<svg>`` element for an HTML page.

    Args:
        figure: Drawn in :func:`page_style`.
        alt: The alternative text; what cannot be printed is shown as escape sequences. Two figures on a page must not
            have both the same text and the same content.

    Example:
        >>> text = inline_svg(Figure(figsize=(1, 1)), 'a "plot"')
        >>> text.startswith("<svg") and 'role="img" aria-label="a &quot;plot&quot;"' in text
        True
    """
    alt, buffer = printable(alt), io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "mixmo"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.04, metadata={"Date": None})
    content = buffer.getvalue()
    root = ElementTree.fromstring(content)
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    _, _, width, _ = root.attrib["viewBox"].split()
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": alt, "style": f"max-width: {float(width) * 4 / 3:.0f}px"}
    _rename(root, f"p{hashlib.sha256((alt + content).encode()).hexdigest()[:8]}-")
    return ElementTree.tostring(root, encoding="unicode")


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Put a prefix before every id, and the page's colours in the place of those drawn."""
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                element.attrib[name] = prefix + value
            elif name in ("href", LINK) and value.startswith("#"):
                element.attrib[name] = f"#{prefix}{value[1:]}"
            elif name in ("style", "clip-path", "fill", "stroke"):
                element.attrib[name] = _page_colors(value.replace("url(#", f"url(#{prefix}"))
        if element.tag == f"{{{SVG}}}style":
            element.text = ""  # rules would hold for the whole page


def _page_colors(style: str) -> str:
    style = style.replace(INK, "currentColor")
    for index, color in enumerate(COLORS):
        style = style.replace(color.lower(), f"var(--plot-{index})")
    return style
