"""Tables in the terminal."""

import contextlib
import io

from hypothesis import given
from hypothesis import strategies as st

from mixmo.reporting.text_table import TextTable


@given(st.integers(1, 9), st.integers(1, 60), st.booleans())
def test_columns_that_do_not_fit_stand_below(count, length, intervals):
    """No cell is cut off, no line is longer than 100 columns, and every part repeats the row names."""
    interval = "[−138.63, +83.16]"
    header = ["", *(f"Metric {number}, points" for number in range(count))]
    rows = [["x" * length, *(f"{number}.25" for number in range(count))]]
    details = {(0, index + 1): interval for index in range(count) if intervals}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        TextTable("Two runs", header, rows, "A note.", details=details).show()
    shown = output.getvalue()
    assert max(map(len, shown.splitlines())) <= 100
    assert shown.count("Two runs") == shown.count("A note.") == 1
    assert all(f"{number}.25" in shown for number in range(count))
    assert shown.count(interval) == len(details)
    assert shown.count("x") == length * shown.count("┏")
