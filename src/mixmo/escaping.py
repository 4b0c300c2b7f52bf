"""Escaping of untrusted text for terminals, Markdown, CSV and charts."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST_LABEL = 60
LONGEST_MESSAGE = 600
LONG_VALUE = re.compile(r"""(?<!\w)'[^']{160,}'(?!\w)|(?<!\w)"[^"]{160,}"(?!\w)|[\[{][^][{}]{160,}[]}]|\S{160,}""")
"""Quoted, bracketed or unbroken text that :func:`message` shortens."""

MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in "\\`*_|~$"})


def timm_scheme(backbone: str) -> str:
    """Return the scheme of a timm model name, ``hf-hub`` or ``local-dir``; empty for a plain name.

    Example:
        >>> timm_scheme("hf_hub:somebody/network"), timm_scheme("resnet18")
        ('hf-hub', '')
    """
    scheme, colon, _ = backbone.partition(":")
    return scheme.lower().replace("_", "-") if colon else ""


def printable(text: str) -> str:
    r"""Replace control characters, surrogates and other unprintable characters by escape sequences.

    Example:
        >>> printable("café \x1b[31m \udcff, two\nlines")
        'café \\x1b[31m \\udcff, two\\nlines'
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def message(text: str) -> str:
    """Return a message as one printable line, with long values and lists abbreviated.

    Example:
        >>> message(f"there is no file {'a/' * 500}b.png; name another.")
        'there is no file a/a/.../a/b.png; name another.'
    """
    line = LONG_VALUE.sub(lambda match: f"{match[0][:80]} … {match[0][-60:]}", printable(" ".join(text.split())))
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:400]} … {line[-200:]}"


def markdown(text: str) -> str:
    r"""Escape text for Markdown, including table cells.

    Example:
        >>> markdown("<b>a|b*")
        '&lt;b&gt;a\\|b\\*'
    """
    return printable(text).translate(MARKDOWN).replace("](", "]\\(")  # no link


def csv_cell(text: str) -> str:
    """Prefix an apostrophe to text that a spreadsheet would evaluate as a formula; numbers are none.

    Example:
        >>> csv_cell("=1+1"), csv_cell("a=1"), csv_cell("-1.5")
        ("'=1+1", 'a=1', '-1.5')
    """
    text = printable(text)
    is_number = re.fullmatch(r"[+-]?\d+(\.\d+)?", text)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) and not is_number else text


def label(text: str, longest: int = LONGEST_LABEL) -> str:
    r"""Escape and truncate text for Matplotlib: ``$`` starts mathematics, a leading underscore hides a legend entry.

    Example:
        >>> label("_$x$")
        ' _\\$x\\$'
    """
    text = printable(text)
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return f"{' ' if text.startswith('_') else ''}{text}".replace("$", "\\$")


def dataset_name(name: str) -> str:
    """Return a dataset's name without its parent folders.

    Example:
        >>> dataset_name("folder:data/textures"), dataset_name("torch/svhn")
        ('textures', 'torch/svhn')
    """
    return (Path(name).name or name) if name.startswith("folder:") else name
