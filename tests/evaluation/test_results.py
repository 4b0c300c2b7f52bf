"""Evaluation of runs, alone or as one ensemble, and ``test.json``."""

import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import copy_run, plan_of, write_images, write_splits
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

import mixmo
from mixmo.errors import InputError
from mixmo.evaluation import inference
from mixmo.evaluation.calibration import (
    calibrate,
    calibrate_run,
    fit_calibration,
    load_cached_calibration,
    pool_calibration,
)
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import Predictions, predict
from mixmo.evaluation.results import EvaluationOptions, class_metrics, evaluate_runs
from mixmo.evaluation.results_file import evaluate_run, merge_earlier, write_results
from mixmo.evaluation.robustness import CorruptionResult
from mixmo.metrics import fit_temperature
from mixmo.metrics.conformal import prediction_sets
from mixmo.metrics.ood import SCORES
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_a_second_evaluation_opens_nothing(trained, monkeypatch):
    _, run, _ = trained
    first = evaluate_run(TrainedRun(run)).flat()
    monkeypatch.setattr(inference, "load_checkpoint", None)  # neither network nor images are opened again
    monkeypatch.setattr("mixmo.data.module.build_image_set", None)
    assert evaluate_run(TrainedRun(run)).flat() == pytest.approx(first, nan_ok=True)


def test_the_temperature_is_that_of_the_validation_set(trained):
    _, run, _ = trained
    result = evaluate_runs([run])
    test, validation = (predict(TrainedRun(run), dataset) for dataset in ("test", "validation"))
    temperature = fit_temperature(validation.logits.mean(1), validation.targets)
    assert result.scaled["temperature"] == pytest.approx(temperature)
    nll = torch.nn.functional.cross_entropy(test.logits.mean(1).double() / temperature, test.targets).item()
    assert result.scaled["nll_scaled"] == pytest.approx(nll)


def test_several_runs_are_one_ensemble(trained):
    _, two, one = trained
    result = evaluate_runs([two, one])
    logits = torch.cat([predict(TrainedRun(run)).logits for run in (two, one)], 1)
    assert logits.shape[1] == 3 == len(result.metrics.members)
    expected = mixmo.evaluate(logits, predict(TrainedRun(one)).targets)
    flat = result.flat()
    assert {key: flat[key] for key in expected} == pytest.approx(expected, nan_ok=True)


def likeliest_temperature(logits, targets):
    """Return the best temperature of logits (N, K) by SciPy, between the documented bounds."""

    def loss(log_temperature):
        return -log_softmax(logits / np.exp(log_temperature), 1)[np.arange(len(targets)), targets].mean()

    return np.exp(minimize_scalar(loss, bounds=np.log([0.01, 100]), method="bounded", options={"xatol": 1e-8}).x)


def test_an_ensemble_is_calibrated_by_the_validation_images_that_its_runs_share(trained):
    """One temperature for the average of all members' logits."""
    _, *runs = trained
    test, held_out = ([predict(TrainedRun(run), name) for run in runs] for name in ("test", "validation"))
    logits, own = (torch.cat([each.logits for each in parts], 1).mean(1).double().numpy() for parts in (held_out, test))
    temperature = likeliest_temperature(logits, held_out[0].targets.numpy())
    result = evaluate_runs(runs)
    assert result.unscaled == "" and result.scaled["temperature"] == pytest.approx(temperature, rel=1e-3)
    targets = test[0].targets.numpy()
    nll = -log_softmax(own / temperature, 1)[np.arange(len(targets)), targets].mean()
    assert result.scaled["nll_scaled"] == pytest.approx(nll, rel=1e-3)


def test_the_temperature_of_several_networks_is_that_of_their_members_average():
    """Networks with more members count for more, as in the ensemble's predictions."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 300)
    logits = [2 * rng.normal(size=(300, members, 4)) + 3 * np.eye(4)[targets][:, None] for members in (3, 1)]
    parts = [Predictions(torch.from_numpy(each), torch.from_numpy(targets), list("abcd"), 1, "x") for each in logits]
    found = pool_calibration(parts, ["a", "b"])
    average = np.concatenate(logits, 1).mean(1)
    expected = likeliest_temperature(average, targets)
    assert found.temperature == pytest.approx(expected, rel=1e-5) and 0.02 < expected < 50
    assert found.confidence.numpy() == pytest.approx(softmax(average / expected, 1).max(1), rel=1e-4)
    assert abs(likeliest_temperature(logits[0].mean(1), targets) / expected - 1) > 0.01
    for other in (replace(parts[1], images="y"), replace(parts[1], targets=parts[1].targets.flip(0))):
        with pytest.raises(InputError, match="a and b held out different images for validation"):
            pool_calibration([parts[0], other], ["a", "b"])


def test_sets_of_every_kind_are_measured(trained):
    """Against a manual computation from the cached predictions for validation and test images."""
    _, run, _ = trained
    result = evaluate_runs([run])
    test, validation = (predict(TrainedRun(run), dataset) for dataset in ("test", "validation"))
    calibration = fit_calibration(validation.logits.mean(1), validation.targets)
    for sets, values in result.sets.items():
        thresholds = calibration.set_thresholds(0.9, 3, sets)
        chosen = prediction_sets(calibration.probabilities(test.logits.mean(1)), thresholds, sets)
        covered = chosen[torch.arange(12), test.targets].double()
        assert values["set_coverage_90"] == covered.mean() and values["set_size_90"] == chosen.sum() / 12
        assert values["set_coverage_class_90"] == min(covered[test.targets == number].mean() for number in range(3))
        assert values["set_rare_classes_90"] == thresholds.isinf().sum()
    assert result.flat()["sets/classwise/set_rare_classes_95"] == 3 == result.sets["marginal"]["set_rare_classes_95"]


def test_a_temperature_of_few_images_is_doubted_once_when_a_run_ends(trained, caplog):
    _, run, _ = trained
    calibrate_run(run, run.settings())
    (warning,) = caplog.messages
    low, high = load_cached_calibration(TrainedRun(run)).interval
    ends = f"{low:.2f} to {high:.2f}" if high < 100 else f"above {low:.2f}"
    assert f"its 95 % interval on the validation images is {ends}" in warning and high > 2 * low


def test_corrected_validation_labels_are_calibrated_again(tmp_path):
    """But not if the validation images are gone; another precision leaves the calibration of float32."""
    held_out = tmp_path / "data" / "val"
    write_images(held_out, count=4, seed=2)
    run = RunFolder(tmp_path / "run")
    fit(plan_of(write_splits(tmp_path / "data"), "--trainer.max_epochs=1", "--model.num_members=1"), run)
    before = calibrate(TrainedRun(run))
    for old, new in (("cat", "gnu"), ("dog", "cat"), ("gnu", "dog")):
        (held_out / old).rename(held_out / new)
    after = calibrate(TrainedRun(run))
    predictions = predict(TrainedRun(run), "validation")
    expected = fit_calibration(predictions.logits.mean(1), predictions.targets)
    assert after.temperature == expected.temperature and torch.equal(after.likely, expected.likely)
    assert not torch.equal(after.likely, before.likely)
    calibrate(TrainedRun(run), "bf16-mixed", refresh=True)
    assert torch.equal(load_cached_calibration(TrainedRun(run)).likely, after.likely)
    shutil.rmtree(tmp_path / "data")
    assert torch.equal(calibrate(TrainedRun(run)).likely, after.likely)


def test_a_calibration_is_kept_if_others_would_be_drawn_for_validation(trained, tmp_path, caplog):
    folder, run, _ = trained
    run = copy_run(run, folder, tmp_path)
    before = calibrate(TrainedRun(run))
    write_images(tmp_path / "data" / "train", classes=("cat/new",), count=1)
    assert calibrate(TrainedRun(run)).temperature == before.temperature
    assert "has changed since" in caplog.text and f"Until then, the calibration of {run.path} is used" in caplog.text
    with pytest.raises(InputError, match="has changed since"):
        calibrate(TrainedRun(run), refresh=True)


def test_images_of_another_draw_are_not_calibrated_on(trained, tmp_path, caplog):
    """Settings of the split that were edited after training."""
    folder, run, _ = trained
    run = copy_run(run, folder, tmp_path)
    before, config = calibrate(TrainedRun(run)), yaml.safe_load(run.config_file.read_text())
    for section, key, value in (("data", "validation", 0.5), ("data", "split_seed", 7)):
        run.config_file.write_text(yaml.safe_dump(config | {section: config[section] | {key: value}}))
        assert calibrate(TrainedRun(run)).temperature == before.temperature
        assert f"sets data.{key} to {value}, but it was" in caplog.text
        with pytest.raises(InputError, match="other images would be drawn for validation"):
            calibrate(TrainedRun(run), refresh=True)


def test_earlier_results_of_other_test_files_are_not_kept(trained, tmp_path):
    """Files of the same names and sizes."""
    folder, run, _ = trained
    run, options = copy_run(run, folder, tmp_path), EvaluationOptions()
    result = evaluate_runs([run])
    write_results(
        TrainedRun(run), replace(result, corruptions=CorruptionResult({"fog": {1: {"nll": 1.0}}}, "x")), options
    )
    assert merge_earlier(TrainedRun(run), result, options).corruptions is not None
    os.utime(next((tmp_path / "data" / "test").glob("*/*.png")), (1, 1))
    assert merge_earlier(TrainedRun(run), result, options).corruptions is None


def test_views_have_results_of_their_own(trained, tmp_path, caplog):
    """Saved next to those of one view; a later call takes over no results of other views."""
    folder, run, _ = trained
    run = copy_run(run, folder, tmp_path)
    name, flip = f"folder:{folder}/other", EvaluationOptions(tta="flip")
    first = evaluate_run(TrainedRun(run), EvaluationOptions(ood=[name])).flat()
    assert caplog.records == []
    found = evaluate_run(TrainedRun(run), flip)
    assert "was trained without mirrored images (data.flip is false)" in caplog.text
    net, (images, _) = TrainedRun(run).network, TrainedRun(run).images("test")
    prepared = TrainedRun(run).prepare(images.images)
    with torch.no_grad():
        expected = (net.members(prepared) + net.members(prepared.flip(3))) / 2
    torch.testing.assert_close(found.predictions.logits, expected, atol=1e-5, rtol=1e-4)
    held_out = predict(TrainedRun(run), "validation", tta="flip")
    expected = fit_calibration(held_out.logits.mean(1), held_out.targets).temperature
    assert found.scaled["temperature"] == pytest.approx(expected)
    assert json.loads((run.path / "test.json").read_text())["about"]["tta"] == "flip" and not found.ood
    assert evaluate_run(TrainedRun(run)).flat() == {key: first[key] for key in first if "ood/" not in key}


def test_weights_of_networks_have_the_least_loss_on_validation_images():
    """SciPy finds no better weights and temperature; a confidently wrong network counts for less."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 500)
    good = rng.normal(size=(500, 2, 4)) + 2 * np.eye(4)[targets][:, None]
    poor = 3 * rng.normal(size=(500, 1, 4)) + np.eye(4)[targets][:, None]
    labels, names = torch.from_numpy(targets), list("abcd")
    parts = [Predictions(torch.from_numpy(each), labels, names, 1, "x") for each in (good, poor)]
    found = pool_calibration(parts, ["a", "b"], "fitted")

    def loss(scales):
        logits = good.sum(1) * scales[0] + poor.sum(1) * scales[1]
        return -log_softmax(logits, 1)[np.arange(500), targets].mean()

    best = minimize(loss, [0.5, 0.5], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).x
    assert found.weights == pytest.approx(2 * best / best.sum(), rel=1e-3) and found.weights[0] > 1.5
    assert found.temperature == pytest.approx(2 / (3 * best.sum()), rel=1e-3)


def test_why_an_ensemble_is_not_calibrated_is_said(trained, another_seed):
    _, two, _ = trained
    result = evaluate_runs([two, another_seed])
    assert result.scaled == {} and result.flat().get("temperature") is None
    assert result.unscaled.startswith(
        f"Not calibrated as an ensemble: {two.path} and {another_seed.path} held out different images for validation"
    )


def test_sections_and_flat_keys_agree(trained):
    """Each key of the flat dict is a field of the result, and the other way round."""
    folder, run, _ = trained
    name = f"folder:{folder}/other"
    result = evaluate_runs([run], EvaluationOptions(ood=[name]))
    flat, metrics = result.flat(), result.metrics
    assert flat["nll"] == metrics.average["nll"] and flat["d_re"] == metrics.diversity["d_re"]
    assert flat["probability_average/nll"] == metrics.probability_average["nll"]
    assert flat["member_1/ece"] == metrics.members[1]["ece"]
    assert flat[f"ood/{name}/energy/fpr95"] == result.ood[name].metrics["energy"]["fpr95"]
    assert len(result.ood[name].predictions.targets) == 16
    assert flat["selectivity"] == result.diagnosis.selectivity
    parts = [metrics.average, metrics.probability_average, *metrics.members, metrics.diversity, result.scaled]
    parts += [values for sets, values in result.sets.items() if sets != "marginal"]
    parts.append(result.diagnosis.flat())
    assert len(flat) == sum(map(len, parts)) + 4 * 3
    assert result.corruptions is None and not any(key.startswith("corruption") for key in flat)


def test_metrics_of_classes_average_to_those_of_all(trained):
    _, run, _ = trained
    result = evaluate_runs([run])
    by_class = class_metrics(result.predictions, result.calibration)
    assert {name: own["images"] for name, own in by_class.items()} == {"cat": 4, "dog": 4, "emu": 4}
    for key in ("accuracy", "nll"):
        mean = sum(own[key] for own in by_class.values()) / 3
        assert mean == pytest.approx(result.metrics.average[key])
    for key in ("set_coverage_90", "set_coverage_95"):
        assert sum(own[key] for own in by_class.values()) / 3 == pytest.approx(result.scaled[key])
    assert "set_coverage_90" not in class_metrics(result.predictions)["cat"]


def test_test_json_has_metrics_and_conventions(trained):
    _, run, _ = trained
    options = EvaluationOptions(precision="bf16-mixed")
    result = replace(evaluate_runs([run], options), per_class={"cat": {"nll": math.nan}})
    file = write_results(TrainedRun(run), result, options)
    content = json.loads(file.read_text())
    assert file == run.path / "test.json"
    flat = {key: None if math.isnan(value) else value for key, value in result.flat().items()}
    assert content.items() >= flat.items()
    assert content["per_class"] == {"cat": {"nll": None}}
    about = content["about"]
    assert (about["images"], about["epochs"], about["precision"]) == (12, 2, "bf16-mixed")
    assert about["conventions"]["ood"] == "the other dataset is the positive class"


def test_every_key_is_documented(trained):
    folder, run, _ = trained
    name = f"folder:{folder}/other"
    flat = evaluate_runs([run], EvaluationOptions(ood=[name])).flat()
    prose = re.sub(r"```.*?```", "", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    documented = set(re.findall(r"`([^`]+)`", prose))
    metrics = {key for key in flat if "/" not in key}
    assert not {key for key in metrics | set(SCORES) if key not in documented}
    assert {"ood/DATASET/SCORE/auroc", "…/aupr", "…/fpr95"} <= documented


def test_bad_options_are_refused():
    for bad in ({"checkpoint": "first"}, {"precision": "16"}):
        with pytest.raises(InputError, match="unknown"):
            EvaluationOptions(**bad)
    with pytest.raises(InputError, match="ood is validation, the run's own images; name another dataset"):
        EvaluationOptions(ood=["digits", "validation"])


def test_what_is_not_defined_is_null_in_the_file(tmp_path):
    run = RunFolder(tmp_path)
    run.write_json("test.json", {"a": math.nan, "b": 1.0, "c": {"d": [math.nan]}})
    assert json.loads((tmp_path / "test.json").read_text()) == {"a": None, "b": 1.0, "c": {"d": [None]}}
