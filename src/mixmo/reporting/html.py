"""Self-contained HTML pages: no network, dark and light, readable on a phone, printable."""

from __future__ import annotations

import base64
import html
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence

from matplotlib.figure import Figure

from mixmo.errors import reason
from mixmo.names import printable

logger = logging.getLogger("mixmo")

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
figure { margin: 1rem 0; } figcaption, caption { font-size: .9rem; opacity: .8; text-align: left; padding: .3rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
.scroll { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
pre { background: var(--soft); padding: .8rem; border-radius: 6px; overflow-x: auto; font-size: .85rem; }
@media print { body { max-width: none; } figure, table { break-inside: avoid; } }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page of HTML parts.

    Example:
        >>> text = page("A & B", ["<p>hello</p>"])
        >>> "<title>A &amp; B</title>" in text and "<p>hello</p>" in text
        True
    """
    heading, body = escaped(title), "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{heading}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{heading}</h1>\n{body}\n</body>\n</html>\n"
    )


def escaped(text: str) -> str:
    """Return plain text as HTML in one line.

    Example:
        >>> escaped("1 < 2")
        '1 &lt; 2'
    """
    return html.escape(printable(text))


def section(heading: str, *parts: str) -> str:
    r"""Return parts under a heading.

    Example:
        >>> section("Masks", "<p>…</p>")
        '<section>\n<h2>Masks</h2>\n<p>…</p>\n</section>'
    """
    return "\n".join(["<section>", f"<h2>{escaped(heading)}</h2>", *parts, "</section>"])


def paragraph(text: str) -> str:
    """Return a paragraph of plain text.

    Example:
        >>> paragraph("1 < 2")
        '<p>1 &lt; 2</p>'
    """
    return f"<p>{escaped(text)}</p>"


def listing(text: str) -> str:
    """Return preformatted plain text.

    Example:
        >>> listing("a: 1")
        '<pre>a: 1</pre>'
    """
    return "<pre>" + "\n".join(escaped(line) for line in text.split("\n")) + "</pre>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Return a table of plain texts that scrolls sideways where it is too wide.

    Example:
        >>> "<td>0.5</td>" in table(["", "ratio"], [["member 0", "0.5"]])
        True
    """

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escaped(cell)}</{tag}>' for cell in cells)}</tr>"

    top = f"<caption>{escaped(caption)}</caption>" if caption else ""
    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{top}<thead>{line(header, "th")}</thead><tbody>{body}</tbody></table></div>'


def picture(png: bytes, description: str) -> str:
    """Return a picture with a caption, which is its text for those who cannot see it as well.

    Example:
        >>> picture(b"", "masks").startswith('<figure><img src="data:image/png;base64,')
        True
    """
    data, text = base64.b64encode(png).decode(), escaped(description)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def chart(draw: Callable[[], Figure], description: str) -> str:
    """Return what Matplotlib draws as a picture of the page; a sentence, and a warning, where that fails.

    Args:
        draw: Returns the figure. No error of its own costs more than the picture.
        description: The caption.

    Example:
        >>> chart(lambda: Figure(figsize=(1, 1)), "nothing").count("nothing")
        2
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font lacks
            return picture(png_of(draw()), description)
    except Exception as error:  # a page without one picture is better than none
        sentence = f"The picture {description!r} could not be drawn: {reason(error)}."
        logger.warning("%s", printable(sentence))
        return paragraph(sentence)


def png_of(figure: Figure, dpi: int = 110) -> bytes:
    r"""Return a figure as the content of a PNG file.

    Example:
        >>> png_of(Figure(figsize=(1, 1)))[:4]
        b'\x89PNG'
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()
