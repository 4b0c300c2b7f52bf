"""The checkpoint stores the network and its preprocessing; editing config.yaml changes no prediction."""

import shutil

import pytest
import torch
import yaml
from conftest import copy_run

import mixmo
from mixmo.deploy.export import export
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import predict
from mixmo.evaluation.results import evaluate_runs

EDITS = {
    "data": {"mean": [0.8], "std": [0.9], "interpolation": "bilinear", "crop_size": 6, "image_size": 12, "channels": 1},
    "model": {"options": {"drop_rate": 0.5}, "num_members": 3, "backbone": "wide_resnet10_2", "mix_at": "stages.0"},
}


def edit_config(run, section, key, value):
    """Change a setting in a run's config.yaml by hand."""
    config = yaml.safe_load(run.config_file.read_text())
    config[section] = {**config[section], key: value}
    run.config_file.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(("section", "key"), [(section, key) for section in EDITS for key in EDITS[section]])
def test_what_the_network_sees_is_the_checkpoints_not_the_configurations(trained, tmp_path, caplog, section, key):
    """An edited config.yaml changes neither predict nor test nor exports; one line of the log says so."""
    folder, two, _ = trained
    run = copy_run(two, folder, tmp_path)
    files = sorted((tmp_path / "data/test/cat").iterdir())
    expected = evaluate_runs([run]).predictions.logits  # which calibrates it too
    before = mixmo.Predictor(run.path)(files).probabilities
    assert not caplog.records
    edit_config(run, section, key, EDITS[section][key])
    assert torch.equal(mixmo.Predictor(run.path)(files).probabilities, before)
    assert f"config.yaml has changed since training: {section}.{key} is {EDITS[section][key]!r} there" in caplog.text
    assert len(caplog.records) == 1
    shutil.rmtree(run.path / "predictions")
    assert torch.equal(predict(TrainedRun(run)).logits, expected)
    caplog.clear()
    assert torch.equal(evaluate_runs([run]).predictions.logits, expected) and len(caplog.records) == 1
    assert export(TrainedRun(run), "timm").difference < 1e-4
    assert torch.allclose(mixmo.Predictor(run.path / "timm")(files).probabilities, before, atol=1e-5)
