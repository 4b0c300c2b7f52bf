"""``report.html``: all sections are present, its first sentence is true, and a failing figure does not lose it."""

import html
import json
import math
import re

import pytest
import torch
from conftest import copy_run
from markupsafe import escape

from mixmo.cli import test as command
from mixmo.cli.main import main
from mixmo.config.plan import make_plan
from mixmo.data.datasets import NamedDataset
from mixmo.evaluation.costs import network_size
from mixmo.evaluation.evaluate import measure
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.intervals import image_intervals
from mixmo.evaluation.predictions import Predictions
from mixmo.evaluation.results import evaluate_runs
from mixmo.metrics import MultiLabelScores
from mixmo.metrics.catalogue import DIVERSITY, METRICS, PER_NETWORK
from mixmo.reporting import charts, headline
from mixmo.reporting.advice import advice
from mixmo.reporting.headline import metric_cards
from mixmo.reporting.run_page import average_and_members, run_page
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

SECTIONS = ["Confidence", "Classes", "Images", "Learning curves"]


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_a_report_has_every_section(trained):
    folder, two, one = trained
    assert main(["test", str(two.path), "--ood", f"folder:{folder}/other", "--corruptions"]) == 0
    page = (two.path / "report.html").read_text()
    assert headings(page) == [*SECTIONS, "Corruptions", "Out-of-distribution images", "Members"]
    assert advice(evaluate_runs([two]).diagnosis, 2) in html.unescape(page)
    assert page.count("data:image/svg") == 8
    for text in (
        "WideResNet-10-1",
        "Predictive entropy",
        "Mutual information",
        "batch_repetition",
        "torch",
        "other",
    ):
        assert text in page, text
    assert main(["test", str(one.path)]) == 0
    page = (one.path / "report.html").read_text()
    assert headings(page) == SECTIONS
    assert "disagree most" not in page and "Disagreement" not in page


def test_the_first_sentence_says_what_how_good_how_sure_at_what_cost_and_against_what(trained):
    _, two, one = trained
    on = r"on WideResNet-10-1, trained on 27 images, classifies .*"
    for run, wanted in (
        (two, rf"Cut-MixMo with 2 members {on} as one network\. Alone, its members reach .* %\."),
        (one, rf"A single network {on} per image\. The most frequent class alone would reach 33\.3 %\."),
    ):
        result = evaluate_runs([run])
        (lead,) = re.findall('<p class="lead">(.*?)</p>', run_page(TrainedRun(run), result))
        assert re.fullmatch(wanted, lead)
        found = re.search(r"classifies ([\d.]+) % \[([\d.]+), ([\d.]+)\] of 12 test images correctly", lead)
        value, low, high = map(float, found.groups())
        assert value == pytest.approx(100 * result.metrics.average["accuracy"], abs=0.05) and low <= value <= high
        gap, side = re.search(r"mean confidence is ([\d.]+) points (above|below) its accuracy", lead).groups()
        samples = result.predictions.average()
        signed = 100 * float(samples.confidence.mean() - samples.right.mean())
        assert float(gap) == pytest.approx(abs(signed), abs=0.05) and (side == "above") == (signed > 0)
        size = network_size(TrainedRun(run))
        shown = re.search(r"has (.*) M parameters and takes (.*) M MACs", lead).groups()
        assert tuple(map(float, shown)) == pytest.approx((size["parameters"] / 1e6, size["macs"] / 1e6), rel=0.05)
        assert "after calibration, as in mixmo predict" in lead


def test_costs_that_cannot_be_counted_cost_half_a_sentence(trained, monkeypatch, caplog):
    _, two, _ = trained

    def fail(*_):
        raise RuntimeError("no network")

    monkeypatch.setattr(headline, "network_size", fail)
    page = run_page(TrainedRun(two), evaluate_runs([two]))
    assert "MACs" not in re.findall('<p class="lead">(.*?)</p>', page)[0] and "costs of" in caplog.text


def test_nothing_stands_twice(trained):
    """Every metric of the average has one row under all metrics, except those of several labels."""
    _, two, _ = trained
    below = run_page(TrainedRun(two), evaluate_runs([two])).split("All metrics")[1]
    for key in (*PER_NETWORK, *DIVERSITY):
        row = re.escape(str(escape(METRICS[key].heading)))
        wanted = key not in (*MultiLabelScores.descriptions, "label_disagreement")
        assert len(re.findall(rf'<th scope="row">{row}<small>', below)) == wanted, key


def test_a_picture_that_fails_costs_nothing_else(trained, monkeypatch, capsys):
    _, two, _ = trained

    def fail(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr(charts, "confusion", fail)
    (two.path / "test.json").unlink(missing_ok=True)
    assert main(["test", str(two.path)]) == 0
    page = (two.path / "report.html").read_text()
    assert "could not be drawn: no font." in page and page.count("data:image/svg") == 5
    assert capsys.readouterr().err.count("could not be drawn") == 1
    assert json.loads((two.path / "test.json").read_text())["about"]["images"] == 12


def test_the_test_set_is_opened_once(trained, monkeypatch):
    """Metrics, costs and both rows of images (mistakes, disagreements) use one DataModule."""
    _, two, _ = trained
    honest, opened = NamedDataset.open, []

    def counted(dataset, split):
        opened.append(split)
        return honest(dataset, split)

    monkeypatch.setattr(NamedDataset, "open", counted)
    assert main(["test", str(two.path)]) == 0
    assert opened.count("test") == 1


def test_metrics_are_written_before_the_page(trained, monkeypatch):
    _, two, _ = trained

    def fail(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(command, "write_report", fail)
    (two.path / "test.json").unlink(missing_ok=True)
    assert main(["test", str(two.path)]) == 1
    assert (two.path / "test.json").is_file()


def test_awkward_names_of_classes_and_runs(trained, tmp_path):
    """They are on the page unchanged; no figure is replaced by a message."""
    folder, two, _ = trained
    settings = copy_run(two, folder, tmp_path).config()
    names = {"cat": "$a^{$<b>", "dog": "_c|d", "emu": "e=f[red]"}
    for split in ("train", "test"):
        for old, new in names.items():
            (tmp_path / "data" / split / old).rename(tmp_path / "data" / split / new)
    run = RunFolder(tmp_path / "$r^{$ <script>&")
    fit(make_plan(settings), run)
    assert main(["test", str(run.path), "--per_class=true"]) == 0
    page = (run.path / "report.html").read_text()
    assert "<h1>Run $r^{$ &lt;script&gt;&amp;</h1>" in page
    assert "could not be drawn" not in page and "<script" not in page and "Every class" in page


def test_cards_have_intervals_where_these_cover():
    logits = 3 * torch.eye(3)[(torch.arange(60) + (torch.arange(60) < 24)) % 3][:, None]
    found = Predictions(logits, torch.arange(60) % 3, list("abc"))
    made = metric_cards(measure(logits, found.targets).average, image_intervals(found))
    shown = {each["heading"]: each["interval"] for each in made}
    assert {heading for heading, interval in shown.items() if interval} == {"Accuracy ↑", "NLL ↓", "Brier score ↓"}
    assert "ECE ↓" in shown and shown["Accuracy ↑"] == "[47.4, 71.4]" and "Balanced accuracy ↑" not in shown
    uneven = metric_cards(measure(logits[:29], found.targets[:29]).average, {})
    assert [each["value"] for each in uneven if each["heading"] == "Balanced accuracy ↑"] == ["17.0 %"]


def test_networks_of_a_report():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    found = average_and_members(Predictions(logits, torch.tensor([0]), ["a", "b"]))
    assert found["ensemble"].confidence.item() == pytest.approx(1 / (1 + math.exp(-1)))
    assert found["member 1"].confidence.item() == 0.5 and found["member 0"].right.item() == 1
    assert list(average_and_members(Predictions(logits[:, :1], torch.tensor([0]), ["a", "b"]))) == ["network"]
    assert list(average_and_members(Predictions(logits.repeat(1, 5, 1), torch.tensor([0]), ["a", "b"]))) == ["ensemble"]
