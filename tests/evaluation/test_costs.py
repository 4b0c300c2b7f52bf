"""What a run costs, against counts by hand."""

import math
from pathlib import Path

import pytest
from conftest import copy_run

import mixmo
from mixmo.evaluation.costs import costs
from mixmo.evaluation.inference import TrainedRun

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_costs_of_a_run(trained):
    _, two, one = trained
    found = {run.path.name: costs(TrainedRun(run)) for run in (two, one)}
    for run in (two, one):
        own = found[run.path.name]
        assert own["parameters"] == sum(p.numel() for p in mixmo.load(run.path).parameters())
        assert own["images"] == 2 * (27 // 4) * 8  # two epochs of 27 images, U = 8 / 2
        assert own["minutes"] > 0 and own["latency_ms"] > 0
        assert all(f"| `{key}` |" in DOCS.read_text(encoding="utf-8") for key in own)
    stem = 2 * 27 * 16 * 64  # both have one stem at inference; heads differ by one of 64×3
    assert found["two"]["macs"] - found["one"]["macs"] == pytest.approx(192, abs=stem)


def test_a_damaged_history_costs_its_own_numbers_only(trained, tmp_path):
    folder, run, _ = trained
    run = copy_run(run, folder, tmp_path)
    run.metrics_file.write_text("epoch,step\n1,6\n")
    found = costs(TrainedRun(run))
    assert math.isnan(found["images"]) and math.isnan(found["minutes"]) and found["macs"] > 0


def test_a_set_input_size_opens_no_dataset(trained, monkeypatch):
    _, run, _ = trained
    run = TrainedRun(run)
    expected = costs(run)["macs"]
    monkeypatch.setattr("mixmo.data.module.NamedDataset", None)
    run.settings.data.crop_size = 8
    assert costs(run)["macs"] == expected
