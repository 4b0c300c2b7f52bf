"""Names from data and paths are displayed safely, whatever they contain."""

import base64
import csv
import html
import io
import logging
import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console
from strategies import NAMES

from mixmo.comparing import Comparison
from mixmo.escaping import csv_cell, label, markdown, printable
from mixmo.evaluation.comparison import Entry, Group
from mixmo.evaluation.evaluate import measure
from mixmo.evaluation.predictions import Predictions
from mixmo.evaluation.results import EvaluationResult
from mixmo.metrics.samples import per_sample
from mixmo.reporting import charts
from mixmo.reporting.comparison_page import comparison_page
from mixmo.reporting.comparison_tables import as_csv
from mixmo.reporting.page import Picture, Section, chart, render
from mixmo.reporting.sections import risk_coverage
from mixmo.reporting.text_table import TextTable

quick = settings(max_examples=60)
slow = settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])


def prediction(classes=("a", "b")):
    return Predictions(torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([0, 1]), list(classes))


def svg_of(picture):
    return base64.b64decode(picture.uri.removeprefix("data:image/svg+xml;base64,")).decode()


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
    text = render("", "", [Section(tables=[TextTable("", [""], [[name]])])])
    (cell,) = re.findall(r'<th scope="row">(.*?)</th>', text)
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
    is_number = re.fullmatch(r"[+-]\d+(\.\d+)?", row[0])
    assert is_number or not row[0].lstrip().startswith(("=", "+", "-", "@"))
    assert row[0].removeprefix("'") == printable(name).removeprefix("'")


@pytest.mark.slow
@slow
@example(["\ud800", "0"])
@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_charts_and_pages_take_any_name(names):
    """Nothing is lost: no figure is replaced by a message."""
    found = [group(name) for name in names]
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.filterwarnings("ignore", "Glyph .* missing")
        patch.setattr(logging.getLogger("mixmo"), "warning", pytest.fail)
        page = comparison_page(found, Comparison(found).tables)
        two = np.eye(2)
        for drawn in (
            chart(charts.histograms, {name: two[0] for name in names}, names[0], caption="c"),
            chart(charts.lines, {name: ([0, 1], [1, 2]) for name in names}, names[0], "epoch", caption="c"),
            chart(charts.confusion, two, names, caption="c"),
            chart(charts.class_accuracies, two[0], two[0] + 1, names, 0.5, caption="c"),
            chart(charts.differences, {name: (1, 0, 2) for name in names}, names[0], True, caption="c"),
        ):
            assert "<script" not in svg_of(drawn)
    assert page.count("data:image/svg") == 3 + 3  # differences of accuracy, NLL and Brier score have intervals
    assert "<script" not in page
    page.encode("utf-8")


@quick
@given(NAMES)
@pytest.mark.filterwarnings("ignore:Glyph .* missing")
def test_plots_show_every_name_as_text(name):
    def draw():
        figure = Figure()
        figure.text(0, 0, label(name))
        return figure

    (text,) = ElementTree.fromstring(svg_of(chart(draw, caption=name))).iter("{http://www.w3.org/2000/svg}text")
    assert text.text.strip() == label(name).replace("\\$", "$").strip()


@quick
@given(NAMES)
def test_alternative_texts_give_names_back(name):
    page = render("", "", [Section(plots=[Picture("data:,", [name], name)])])
    (alt,) = re.findall(r'alt="(.*?)"', page)
    assert html.unescape(alt) == printable(name)


def test_plots_are_dark_on_dark_pages_and_the_same_each_time():
    def plot():
        return chart(charts.differences, {"a": (1, -1, 2)}, "h", True, caption="a")

    svg = svg_of(plot())
    assert plot() == plot() and "prefers-color-scheme: dark" in svg and "#010203" not in svg.replace(", #010203)", "")


@quick
@given(NAMES)
def test_legends_show_every_name(name):
    answer = per_sample(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    (axis,) = charts.lines({name: risk_coverage(answer), f"{name}2": risk_coverage(answer)}, "", "").axes
    text, _ = axis.get_legend().get_texts()
    assert text.get_text() == label(name, charts.LEGEND)
    assert text.get_text().replace("\\$", "").count("$") == 0


def test_what_cannot_be_drawn_is_a_sentence(caplog):
    def fail():
        raise RuntimeError("no <font>")

    page = render("", "", [Section(plots=[chart(fail, caption="curves")])])
    assert "<p>The picture &#39;curves&#39; could not be drawn: no &lt;font&gt;.</p>" in page and "<img" not in page
    assert [record.name for record in caplog.records] == ["mixmo"]
