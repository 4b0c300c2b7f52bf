"""``report.html``: every section is there, the page stands alone and opens without a complaint."""

import math
import re

import pytest
import torch

from mixmo.charts import answers
from mixmo.predictions import Predictions
from mixmo.testing import judge

SECTIONS = ["What was trained", "Figures", "Learning curves", "Calibration", "Selective prediction", "Images"]


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_a_report_has_every_section(trained):
    folder, two, one = trained
    judge(two, ood=[f"folder:{folder}/strangers"])
    page = (two.path / "report.html").read_text()
    wanted = [*SECTIONS[:-1], "Out of distribution", "Diversity", "Images", "How to repeat it"]
    assert headings(page) == wanted
    assert page.count("data:image/png;base64,") == 7
    assert not re.search(r'(?:src|href)="(?!data:)', page)  # nothing is fetched
    for text in ("wide_resnet10_1", "entropy", "mutual information", "batch_repetition", "torch"):
        assert text in page, text
    judge(one)
    page = (one.path / "report.html").read_text()
    assert headings(page) == [*SECTIONS, "How to repeat it"]
    assert "disagree most" not in page


def test_a_report_opens_without_a_complaint(trained, chromium):
    _, two, _ = trained
    judge(two)
    content, complaints = chromium(two.path / "report.html")
    assert "Learning curves" in content
    assert "CONSOLE" not in complaints


def test_parts_of_a_report():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    found = answers(Predictions(logits, torch.tensor([0]), ["a", "b"]))
    assert found["ensemble"].confidence.item() == pytest.approx(1 / (1 + math.exp(-1)))
    assert found["member 1"].confidence.item() == 0.5 and found["member 0"].right.item() == 1
    assert list(answers(Predictions(logits[:, :1], torch.tensor([0]), ["a", "b"]))) == ["network"]
