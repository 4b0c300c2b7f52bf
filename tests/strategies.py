"""Shared hypothesis strategies: damaged files, and names in data."""

from hypothesis import strategies as st


@st.composite
def mutations(draw, content):
    """Draw the content of a file with some bytes flipped, removed or inserted."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(found) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "end", "insert"]))
        if kind == "flip" and found:
            found[place] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del found[place : place + draw(st.integers(1, 40))]
        elif kind == "end":
            del found[place:]
        else:
            found[place:place] = draw(st.binary(min_size=1, max_size=20))
    return bytes(found)


NAMES = st.one_of(
    st.text(st.characters(), min_size=1, max_size=12),  # surrogates among them
    st.sampled_from(
        ["<script>alert(1)</script>", "a|b", "two\nlines", "=1+1", "+1", "-1", "@x", "\t=1", "$x^{$", "$", "\\$", "_x_",
         "{", "%s", "\udcff", "\x1b[31mred", "[red]x[/red]", "**bold**", "[a](http://x)", "`", "\u202e", "\r", "\0",
         "x" * 300]
    ),
)  # fmt: skip
"""Names that folders, runs, classes and datasets may have."""
