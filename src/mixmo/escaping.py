"""Escaping of names from data and paths for terminals, Markdown, CSV and charts."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST = 60
"""Characters of a name in a chart."""

LONGEST_MESSAGE = 600

LONG_VALUE = re.compile(r"""(?<!\w)'[^']{160,}'(?!\w)|(?<!\w)"[^"]{160,}"(?!\w)|[\[{][^][{}]{160,}[]}]|\S{160,}""")
"""Quoted, bracketed or unbroken text, too long for a sentence."""

MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in "\\`*_|~$"})


def timm_scheme(backbone: str) -> str:
    """Return where timm looks for a backbone, ``hf-hub`` or ``local-dir``; empty for a plain name.

    Example:
        >>> timm_scheme("hf_hub:somebody/network"), timm_scheme("resnet18")
        ('hf-hub', '')
    """
    scheme, colon, _ = backbone.partition(":")
    return scheme.lower().replace("_", "-") if colon else ""


def printable(text: str) -> str:
    r"""Return a text in which control characters, surrogates and all else that cannot be printed are escape sequences.

    Example:
        >>> printable("café \x1b[31m \udcff, two\nlines")
        'café \\x1b[31m \\udcff, two\\nlines'
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def message(text: str) -> str:
    """Return a sentence in one printable line, in which long values and long lists are their starts and ends.

    Example:
        >>> message(f"there is no file {'a/' * 500}b.png; name another.")
        'there is no file a/a/.../a/b.png; name another.'
    """
    line = LONG_VALUE.sub(lambda found: f"{found[0][:80]} … {found[0][-60:]}", printable(" ".join(text.split())))
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:400]} … {line[-200:]}"


def markdown(text: str) -> str:
    r"""Return a text that Markdown shows as it is, also in a table's cell.

    Example:
        >>> markdown("<b>a|b*")
        '&lt;b&gt;a\\|b\\*'
    """
    return printable(text).translate(MARKDOWN).replace("](", "]\\(")  # no link


def csv_cell(text: str) -> str:
    """Return a text that spreadsheets do not take for a formula: an apostrophe precedes one.

    Example:
        >>> csv_cell("=1+1"), csv_cell("a=1")
        ("'=1+1", 'a=1')
    """
    text = printable(text)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def label(text: str, longest: int = LONGEST) -> str:
    r"""Return a text that Matplotlib shows as it is, cut to some characters.

    Dollars would be mathematics, and labels that begin with an underscore stay out of legends.

    Example:
        >>> label("_$x$")
        ' _\\$x\\$'
    """
    text = printable(text)
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return f"{' ' if text.startswith('_') else ''}{text}".replace("$", "\\$")


def dataset_name(name: str) -> str:
    """Return a dataset's name without the folders it lies in.

    Example:
        >>> dataset_name("folder:data/textures"), dataset_name("torch/svhn")
        ('textures', 'torch/svhn')
    """
    return (Path(name).name or name) if name.startswith("folder:") else name
