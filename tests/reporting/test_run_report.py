"""``report.html``: every section is there, the page stands alone and opens without a complaint."""

import json
import math
import re

import pytest
import torch
from conftest import moved

from mixmo.cli import test as command
from mixmo.cli.main import main
from mixmo.evaluation.predictions import Predictions
from mixmo.reporting import charts
from mixmo.reporting.charts import answers
from mixmo.runs import Run

SECTIONS = ["What was trained", "Figures", "Learning curves", "Calibration", "Selective prediction", "Images"]


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_a_report_has_every_section(trained):
    folder, two, one = trained
    assert main(["test", str(two.path), "--ood", f"folder:{folder}/strangers"]) == 0
    page = (two.path / "report.html").read_text()
    wanted = [*SECTIONS[:-1], "Out of distribution", "Diversity", "Images", "How to repeat it"]
    assert headings(page) == wanted
    assert page.count("data:image/png;base64,") == 7
    assert not re.search(r'(?:src|href)="(?!data:)', page)  # nothing is fetched
    for text in ("wide_resnet10_1", "entropy", "mutual information", "batch_repetition", "torch"):
        assert text in page, text
    assert main(["test", str(one.path)]) == 0
    page = (one.path / "report.html").read_text()
    assert headings(page) == [*SECTIONS, "How to repeat it"]
    assert "disagree most" not in page


def test_a_report_opens_without_a_complaint(trained, chromium):
    _, two, _ = trained
    assert main(["test", str(two.path)]) == 0
    content, complaints = chromium(two.path / "report.html")
    assert "Learning curves" in content
    assert "CONSOLE" not in complaints


def test_a_picture_that_fails_costs_nothing_else(trained, monkeypatch, capsys):
    _, two, _ = trained

    def fail(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr(charts, "learning_curves", fail)
    (two.path / "test.json").unlink(missing_ok=True)
    assert main(["test", str(two.path)]) == 0
    page = (two.path / "report.html").read_text()
    assert "could not be drawn: no font." in page and page.count("data:image/png") == 5
    assert capsys.readouterr().err.count("could not be drawn") == 1
    assert json.loads((two.path / "test.json").read_text())["about"]["images"] == 12


def test_figures_are_written_before_the_page(trained, monkeypatch):
    _, two, _ = trained

    def fail(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(command, "write_report", fail)
    (two.path / "test.json").unlink(missing_ok=True)
    assert main(["test", str(two.path)]) == 1
    assert (two.path / "test.json").is_file()


def test_awkward_names_of_classes_and_runs(trained, tmp_path):
    """They stand on the page as they are; no sentence stands in the place of a picture."""
    folder, two, _ = trained
    run = moved(two, folder, tmp_path)
    run.path.rename(tmp_path / "$r^{$ <script>&")
    run = Run(tmp_path / "$r^{$ <script>&")
    names = {"cat": "$a^{$<b>", "dog": "_c|d", "emu": "e=f[red]"}
    for split in ("train", "test"):
        for old, new in names.items():
            (tmp_path / "data" / split / old).rename(tmp_path / "data" / split / new)
    assert main(["test", str(run.path), "--per_class=true"]) == 0
    page = (run.path / "report.html").read_text()
    assert "<h1>Run $r^{$ &lt;script&gt;&amp;</h1>" in page
    assert "could not be drawn" not in page and "<script" not in page


def test_parts_of_a_report():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    found = answers(Predictions(logits, torch.tensor([0]), ["a", "b"]))
    assert found["ensemble"].confidence.item() == pytest.approx(1 / (1 + math.exp(-1)))
    assert found["member 1"].confidence.item() == 0.5 and found["member 0"].right.item() == 1
    assert list(answers(Predictions(logits[:, :1], torch.tensor([0]), ["a", "b"]))) == ["network"]
