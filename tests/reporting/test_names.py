"""Names from data and paths: whatever they are, they do no harm where they are shown."""

import csv
import html
import io
import logging
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from strategies import NAMES

from mixmo.evaluation.comparison import Entry, Group
from mixmo.evaluation.evaluate import measure, per_sample
from mixmo.evaluation.predictions import Predictions
from mixmo.evaluation.results import EvaluationResult
from mixmo.names import csv_cell, label, markdown, printable
from mixmo.reporting import charts
from mixmo.reporting import html as pages
from mixmo.reporting.comparison_page import as_csv, comparison_page, costs_table, figures_table
from mixmo.reporting.tables import TextTable

quick = settings(max_examples=60, deadline=None)
slow = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def prediction(classes=("a", "b")):
    return Predictions(torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([0, 1]), list(classes))


def group(name):
    found = prediction()
    result = EvaluationResult(found, measure(found.logits, found.targets))
    return Group(name, [Entry(name, [], result, {})])


@quick
@given(NAMES)
def test_printable_names_are_one_line_that_any_file_can_hold(name):
    shown = printable(name)
    assert shown.isprintable() and shown.encode("utf-8").decode() == shown
    assert shown == name or not name.isprintable()


@quick
@given(NAMES)
def test_markdown_of_a_table_keeps_its_cells(name):
    text = TextTable(name, ["", name], [[name, name]], note=name, best={(0, 1)}).markdown()
    assert "<" not in text and "\r" not in text
    lines = text.split("\n")
    assert len(lines) == 7  # title, blank, header, rule, row, blank, note
    for line in (lines[2], lines[4]):
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3
    assert "](" not in markdown(name)


@quick
@given(NAMES)
def test_html_of_a_table_gives_names_back(name):
    text = TextTable("", [""], [[name]]).html()
    (cell,) = re.findall(r"<td>(.*?)</td>", text)
    assert html.unescape(cell) == printable(name) and "<" not in cell


@quick
@given(NAMES)
def test_a_terminal_shows_names_as_they_are(name):
    stream = io.StringIO()
    Console(file=stream, width=2000, force_terminal=False).print(TextTable("t", ["h"], [[name]]).rich())
    assert printable(name).strip() in stream.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", stream.getvalue())


@quick
@given(NAMES)
def test_csv_holds_no_formulas(name):
    (_, row) = csv.reader(io.StringIO(as_csv([group(name)])))
    assert row[0] == row[1] == csv_cell(name)
    assert not row[0].lstrip().startswith(("=", "+", "-", "@"))
    assert row[0].removeprefix("'") == printable(name).removeprefix("'")


@slow
@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_charts_and_pages_take_any_name(names):
    """Nothing is lost: no sentence stands in the place of a picture."""
    found = [group(name) for name in names]
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.filterwarnings("ignore", "Glyph .* missing")
        patch.setattr(logging.getLogger("mixmo"), "warning", pytest.fail)
        page = comparison_page(found, [figures_table(found), costs_table(found)])
        pixels = [np.zeros((2, 2, 3), np.uint8)] * 2
        pages.png_of(charts.image_grid(pixels, [f"{name}\n({name})" for name in map(printable, names)]))
        parts = {name: prediction() for name in names}
        pages.png_of(charts.confidences({names[0]: parts}))
        pages.png_of(charts.disagreements(parts))
        pages.png_of(charts.accuracy_by_severity({name: [1.0] * 6 for name in names}))
        row = {"epoch": 1.0, "step": 1.0, "train_loss": 1.0, "val_accuracy": 0.5, f"{names[0]}_accuracy": 0.5}
        pages.png_of(charts.learning_curves([row]))
        pages.png_of(charts.compared_curves({name: [row] for name in names}))
    assert page.count("data:image/png;base64,") == 2 and "<script" not in page
    page.encode("utf-8")


@quick
@given(NAMES)
def test_legends_show_every_name(name):
    answer = per_sample(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    (axis,) = charts.risk_coverage({name: answer}).axes
    (text,) = axis.get_legend().get_texts()
    assert text.get_text() == label(name)
    assert text.get_text().replace("\\$", "").count("$") == 0


def test_what_cannot_be_drawn_is_a_sentence(caplog):
    def fail():
        raise RuntimeError("no <font>")

    assert pages.chart(fail, "curves") == "<p>The picture &#x27;curves&#x27; could not be drawn: no &lt;font&gt;.</p>"
    assert [record.name for record in caplog.records] == ["mixmo"]
