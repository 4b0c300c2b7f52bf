"""Predictions without the dataset: the network's calibrated logits, for every kind of image."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import plan_of, write_splits
from PIL import Image
from scipy.stats import entropy
from threads import predictions_of_threads, shared_state

import mixmo
from mixmo.config.data_settings import DataSettings
from mixmo.data.batches import Augmentation
from mixmo.data.decoding import to_size
from mixmo.deploy.export import ExportOptions, export
from mixmo.deploy.image_predictions import interpret_logits
from mixmo.errors import InputError
from mixmo.evaluation.calibration import fit_calibration
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import predict
from mixmo.evaluation.results import EvaluationOptions, evaluate_runs
from mixmo.metrics.conformal import SETS, prediction_sets
from mixmo.runs import RunFolder
from mixmo.training.fit import fit


def test_answers_are_the_networks(gone, new_images):
    """By hand: scaled to 16, centre-cropped to 12, normalised, members' logits averaged and divided by T."""
    files = sorted(new_images.iterdir())
    found = mixmo.Predictor(gone)(files)
    assert found.classes == ["cat", "dog", "emu"] and found.names == [str(file) for file in files]
    pixels = np.stack([to_size(np.asarray(Image.open(file)), (16, 16)) for file in files])
    own = DataSettings(crop_size=12, mean=[0.3], std=[0.37])
    shown = Augmentation(own).center(torch.from_numpy(pixels), torch.arange(12))
    with torch.no_grad():
        logits = mixmo.load(gone).members(shown).double()
    temperature = mixmo.Predictor(gone).calibration.temperature
    assert temperature != 1
    torch.testing.assert_close(found.probabilities, (logits.mean(1) / temperature).softmax(1), atol=1e-6, rtol=1e-6)
    members = logits.softmax(2).numpy()
    total, aleatoric = entropy(members.mean(1), axis=1), entropy(members, axis=2).mean(1)
    np.testing.assert_allclose(found.total, total, atol=1e-6)
    np.testing.assert_allclose(found.epistemic, total - aleatoric, atol=1e-6)
    agreement = (members.argmax(2) == found.labels.numpy()[:, None]).mean(1)
    np.testing.assert_allclose(found.agreement, agreement)


def test_images_of_every_form_are_the_same(gone, new_images):
    file = sorted(new_images.iterdir())[0]
    image = Image.open(file)
    array = np.asarray(image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    forms = [file, str(file), buffer.getvalue(), image, array, array / 255, torch.from_numpy(array).permute(2, 0, 1)]
    forms += [array[None], torch.from_numpy(array / 255).permute(2, 0, 1)[None]]
    predictor = mixmo.Predictor(gone)
    expected = predictor([file]).probabilities
    for form in forms:
        assert torch.equal(predictor(form).probabilities, expected), type(form)
    grey = predictor(array[..., 0]).probabilities
    assert torch.equal(grey, predictor(array[..., :1]).probabilities)
    assert torch.equal(grey, predictor(array[..., [0, 0, 0]]).probabilities)


def test_batches_and_workers_change_nothing(gone, new_images):
    files, predictor = sorted(new_images.iterdir()), mixmo.Predictor(gone)
    expected = predictor(files)
    for options in ({"batch_size": 5}, {"batch_size": 4, "workers": 2}):
        found = predictor(files, **options)
        torch.testing.assert_close(found.probabilities, expected.probabilities, atol=1e-6, rtol=1e-6)
        assert found.names == expected.names


def test_an_ensemble_averages_logits(gone, new_images, tmp_path):
    files, again = sorted(new_images.iterdir()), tmp_path / "again"
    shutil.copytree(gone, again)
    one, two = mixmo.Predictor(gone), mixmo.Predictor([gone, again])
    assert two.calibration.temperature == pytest.approx(one.calibration.temperature)  # of the same logits
    shutil.rmtree(again / "predictions")
    two = mixmo.Predictor([gone, again])
    found = two(files)
    assert two.calibration is None and found.sets is None and found.defer is None
    assert two.uncalibrated == (
        f"{again} has no predictions on its validation images; `mixmo test {again}` makes them."
    )
    temperature = one.calibration.temperature
    raw = (one(files).probabilities.log() * temperature).softmax(1)
    torch.testing.assert_close(found.probabilities, raw, atol=1e-6, rtol=1e-6)
    assert torch.equal(mixmo.Predictor(f"{gone}+{again}")(files).probabilities, found.probabilities)
    row, calibrated = next(found.rows()), next(one(files).rows())
    assert row["confidence"] is None and row["probability"] == calibrated["probability"] != calibrated["confidence"]
    for models in ([], [gone, gone], f"{gone}+{gone}"):
        with pytest.raises(InputError, match="names no network, or one twice"):
            mixmo.Predictor(models)


def test_an_ensemble_is_calibrated_by_the_validation_images_that_its_runs_share(trained, another_seed, new_images):
    """Without the dataset, from each run's cached calibration; if held-out images differ, the reason is given."""
    _, two, one = trained
    runs = [two, one, another_seed]
    expected = evaluate_runs([two, one]).scaled["temperature"]
    evaluate_runs([another_seed])
    both = mixmo.Predictor([two.path, one.path])
    found = both(sorted(new_images.iterdir()))
    assert both.calibration.temperature == pytest.approx(expected)
    assert found.sets.any(1).all() and both.uncalibrated == ""
    others = mixmo.Predictor([run.path for run in runs[1:]])
    assert others.calibration is None
    assert f"{one.path} and {another_seed.path} held out different images for validation" in others.uncalibrated


def test_nothing_is_said_of_members_that_are_not_known(gone, exported, new_images, tmp_path):
    files, apart = sorted(new_images.iterdir()), tmp_path / "members.onnx"
    export(TrainedRun(RunFolder(gone)), "onnx", apart, ExportOptions(members=True))
    expected = next(mixmo.Predictor(gone)(files).rows())
    for file, known in ((exported["onnx"], False), (apart, True)):
        row = next(mixmo.Predictor(file)(files).rows())
        for key in ("aleatoric", "epistemic", "agreement"):
            assert row[key] == (pytest.approx(expected[key], abs=1e-4) if known else None)
        assert row["total"] > 0 and row["confidence"] == pytest.approx(expected["confidence"], abs=1e-4)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", "image nowhere.png cannot be read: No such file or directory"),
        (np.zeros((2, 2, 5)), r"it has shape \(2, 2, 5\), whose bands do not match data\.channels, 3"),
        (np.zeros((0, 4)), "it has no pixels"),
        (np.full((4, 4), np.nan), "is neither uint8, uint16, nor finite floats from 0 to 1"),
        (np.full((4, 4), 255.0), "is neither uint8, uint16, nor finite floats from 0 to 1"),
        (np.zeros((4, 4), np.int64), "an image of int64 is neither uint8"),
        (b"no image", "image 0 cannot be read: it is damaged, or not one of"),
        (object(), "a object is not an image"),
        ([], "there are no images to predict"),
    ],
)
def test_what_is_no_image_is_one_sentence(gone, image, message):
    with pytest.raises(InputError, match=message):
        mixmo.Predictor(gone)(image)


def test_networks_that_are_none_are_one_sentence(gone, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"x")
    (tmp_path / "damaged.onnx").write_bytes(b"x")
    cases = {
        "nowhere": "no run folder",
        "empty": "is not a run's folder",
        "weights.bin": "is not a network; name a run's folder",
        "damaged.onnx": "cannot be opened by onnxruntime",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            mixmo.Predictor(tmp_path / name)
    for key in ("coverage", "max_error_rate"):
        with pytest.raises(InputError, match=f"{key} is 1.5; it is a share between 0 and 1"):
            mixmo.Predictor(gone, **{key: 1.5})


def test_a_network_is_no_path(gone):
    net = mixmo.load(gone)
    for models in (net, [gone, net], None):
        with pytest.raises(InputError, match=r"is not a path; Predictor takes the folder of a run or an exported"):
            mixmo.Predictor(models)


def test_a_network_that_has_diverged_is_one_sentence(gone, new_images, monkeypatch):
    files, predictor = sorted(new_images.iterdir()), mixmo.Predictor(gone)
    forward = predictor._forward
    monkeypatch.setattr(predictor, "_forward", lambda images: (forward(images)[0] * torch.nan, None))
    with pytest.raises(InputError, match=rf"answers image {files[0]} with numbers that are not finite"):
        predictor(files)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("model_args", r"size mismatch for fc\.weight"),
        (None, r"size mismatch for fc\.weight"),
    ],
)
def test_a_timm_folder_whose_description_does_not_fit_its_weights_is_refused(gone, tmp_path, where, message):
    """Also one without digests, from another program: timm would initialise a new head, and predict at chance level."""
    folder = export(TrainedRun(RunFolder(gone)), "timm", tmp_path / "timm").path
    config, spec = (json.loads((folder / name).read_text()) for name in ("config.json", "mixmo.json"))
    (config[where] if where else config)["num_classes"], spec["classes"] = 4, list("abcd")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mixmo.json").write_text(json.dumps({k: v for k, v in spec.items() if k not in ("sha256", "files")}))
    with pytest.raises(InputError, match=message):
        mixmo.Predictor(folder)


def test_a_calibration_of_another_checkpoint_is_not_used(gone, tmp_path):
    """For example of a run that was trained further; nor is a damaged one."""
    shutil.copytree(gone, tmp_path / "run")
    assert mixmo.Predictor(tmp_path / "run").calibration is not None
    shutil.copy(tmp_path / "run/calibration-best.safetensors", tmp_path / "run/calibration-last.safetensors")
    best, last = ((tmp_path / f"run/checkpoints/{name}.ckpt").read_bytes() for name in ("best", "last"))
    assert (mixmo.Predictor(tmp_path / "run").calibration is not None) == (best == last)
    (tmp_path / "run/calibration-last.safetensors").write_bytes(b"damaged")
    assert mixmo.Predictor(tmp_path / "run").calibration is None


def test_what_is_deferred_and_what_is_in_the_sets():
    """Sets and deferral follow from validation images, by the thresholds tested with the metrics."""
    torch.manual_seed(0)
    targets = torch.randint(3, (400,))
    logits = torch.nn.functional.one_hot(targets, 3) * 3 + torch.randn(400, 3)
    fresh = torch.randint(3, (4000,))
    fresh_logits = (torch.nn.functional.one_hot(fresh, 3) * 3 + torch.randn(4000, 3))[:, None]
    found = interpret_logits(fresh_logits, [""] * 4000, list("abc"), fit_calibration(logits, targets), 0.9, 0.05)
    assert 0.85 < found.sets.gather(1, fresh[:, None]).double().mean() < 0.97
    wrong = found.labels != fresh
    assert wrong.double().mean() > wrong[~found.defer].double().mean() <= 0.05 and (~found.defer).double().mean() > 0.5
    unsure = interpret_logits(
        logits[:, None], [""] * 400, list("abc"), fit_calibration(logits[:4], targets[:4]), max_error_rate=0.01
    )
    assert unsure.defer.all() and unsure.sets.all()


def test_sets_of_every_kind_follow_from_the_option(gone, new_images, caplog):
    """They equal those of the metrics' functions at the thresholds of the cached calibration."""
    files = sorted(new_images.iterdir())
    for sets in SETS:
        caplog.clear()
        predictor = mixmo.Predictor(gone, coverage=0.8, sets=sets)
        found = predictor(files)
        thresholds = predictor.calibration.set_thresholds(0.8, 3, sets)
        assert torch.equal(found.sets, prediction_sets(found.probabilities, thresholds, sets))
        assert caplog.records == []
    mixmo.Predictor(gone, coverage=0.99, sets="classwise")
    (warning,) = caplog.records
    assert (
        warning.getMessage() == "Every set holds cat, dog, emu: too few validation images for class-wise sets of 0.99."
    )
    with pytest.raises(InputError, match="unknown sets 'class'"):
        mixmo.Predictor(gone, sets="class")


def test_features_are_what_the_heads_see(gone, new_images, tmp_path):
    """Shared by the members; logits are calibrated, for all classes."""
    files, net = sorted(new_images.iterdir()), mixmo.load(gone)
    found, plain = mixmo.Predictor(gone, features=True)(files), mixmo.Predictor(gone)(files)
    assert plain.features is None and found.features.shape == (12, net.backbone.num_features)
    with torch.no_grad():
        average = torch.stack([head(found.features) for head in net.heads]).mean(0).double()
    expected = average / mixmo.Predictor(gone).calibration.temperature
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.logits.softmax(1), found.probabilities) and torch.equal(found.logits, plain.logits)
    folder = export(TrainedRun(RunFolder(gone)), "timm", tmp_path / "timm").path
    torch.testing.assert_close(mixmo.Predictor(folder, features=True)(files).features, found.features)


def test_features_that_are_not_to_be_had_are_one_sentence(gone, trained, new_images, tmp_path):
    pytest.importorskip("onnxruntime")
    file = export(TrainedRun(RunFolder(gone)), "onnx", tmp_path / "a.onnx").path
    files = sorted(new_images.iterdir())
    for tta in ("flip", "crops"):  # views it has
        found, expected = (mixmo.Predictor(path, tta=tta)(files).probabilities for path in (file, gone))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="an ONNX file gives no features; predict with the run"):
        mixmo.Predictor(file, features=True)(files)
    with pytest.raises(InputError, match="features are of one network, not of 2"):
        mixmo.Predictor([run.path for run in trained[1:]], features=True)


def test_views_are_averaged_and_calibrated_alike(trained, new_images):
    """Against a manual computation with the mirror image, at the temperature fitted to the same views."""
    _, two, one = trained
    files = sorted(new_images.iterdir())
    predictor = mixmo.Predictor(two.path, tta="flip")
    found = predictor(files)
    run = TrainedRun(two)
    pixels = np.stack([to_size(np.asarray(Image.open(file)), (8, 8)) for file in files])
    prepared = run.prepare(torch.from_numpy(pixels))
    with torch.no_grad():
        average = (run.network(prepared) + run.network(prepared.flip(3))).double() / 2
    held_out = predict(run, "validation", tta="flip")
    temperature = fit_calibration(held_out.logits.mean(1), held_out.targets).temperature
    torch.testing.assert_close(found.logits, average / temperature, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found.logits, mixmo.Predictor(two.path)(files).logits, atol=1e-3)
    assert not torch.equal(held_out.logits, predict(run, "validation").logits)
    both = mixmo.Predictor([two.path, one.path], tta="flip")
    other = predict(TrainedRun(one), "validation", tta="flip")
    pooled = torch.cat([held_out.logits, other.logits], 1).mean(1)
    assert both.calibration.temperature == pytest.approx(fit_calibration(pooled, held_out.targets).temperature)


def test_crops_of_photos_are_averaged_and_calibrated_alike(tmp_path, new_images):
    """Against manual crops of pixels; a network that uses whole images is refused beforehand."""
    write_splits(tmp_path / "data", train=12)
    run = RunFolder(tmp_path / "run")
    fit(plan_of(tmp_path / "data", "--trainer.max_epochs=1", "--data.image_size=12", "--data.crop_size=8"), run)
    files = sorted(new_images.iterdir())
    predictor = mixmo.Predictor(run.path, tta="crops")
    network, form = TrainedRun(run), (12, 12)
    pixels = torch.from_numpy(np.stack([to_size(np.asarray(Image.open(file)), form) for file in files]))
    places = [(2, 2), (0, 0), (0, 4), (4, 0), (4, 4)]
    with torch.no_grad():
        parts = [network.network(network.prepare(pixels[:, top : top + 8, left : left + 8])) for top, left in places]
    average = sum(each.double() for each in parts) / 5
    torch.testing.assert_close(
        predictor(files).logits, average / predictor.calibration.temperature, atol=1e-5, rtol=1e-4
    )
    found = evaluate_runs([run], EvaluationOptions(tta="crops"))
    assert found.calibration.temperature == pytest.approx(predictor.calibration.temperature)
    assert not torch.equal(found.predictions.logits, evaluate_runs([run]).predictions.logits)


def test_crops_of_whole_images_are_refused(trained):
    run = trained[1]
    message = rf"{run.path} sees 8×8 of images of 8×8 pixels .* no other crops; use flip"
    with pytest.raises(InputError, match=message):
        mixmo.Predictor(run.path, tta="crops")
    with pytest.raises(InputError, match=message):
        evaluate_runs([run], EvaluationOptions(tta="crops"))


def test_without_its_validation_images_nothing_is_calibrated_for_other_views(gone, new_images, tmp_path):
    """Neither a run whose photos are gone nor an export uses the calibration of one view for two."""
    files, folder = sorted(new_images.iterdir()), export(TrainedRun(RunFolder(gone)), "timm", tmp_path / "timm").path
    reasons = {
        gone: f"{gone} cannot be calibrated with tta flip: there is no dataset folder",
        folder: f"{folder} is calibrated without test-time augmentation; predict with the run, or leave out tta.",
    }
    for path, why in reasons.items():
        predictor = mixmo.Predictor(path, tta="flip")
        assert predictor.calibration is None and predictor.uncalibrated.startswith(why)
        found = predictor(files)
        assert found.sets is None and found.defer is None
        assert next(found.rows())["confidence"] is None


def test_the_networks_of_an_ensemble_are_weighted_by_validation_images(trained, another_seed, new_images):
    _, two, one = trained
    files, paths = sorted(new_images.iterdir()), [two.path, one.path]
    evaluate_runs([two, one])  # which keeps predictions on validation images
    found = mixmo.Predictor(paths, weights="fitted")
    weights = found.calibration.weights
    anew = evaluate_runs([two, one], EvaluationOptions(weights="fitted", refresh=True))
    assert anew.calibration.weights == pytest.approx(weights)
    assert (
        sum(weights) == pytest.approx(2)
        and evaluate_runs([two, one], EvaluationOptions(weights="fitted")).calibration.weights == weights
    )
    singles = [next(mixmo.Predictor(path).stream(files)).logits.double() for path in paths]
    average = (singles[0].sum(1) * weights[0] + singles[1].sum(1) * weights[1]) / 3
    torch.testing.assert_close(found(files).logits, average / found.calibration.temperature)
    runs = [TrainedRun(two), TrainedRun(one)]
    torch.testing.assert_close(mixmo.Predictor(runs, weights="fitted")(files).logits, found(files).logits)
    for evaluate in (lambda: mixmo.Predictor(one.path, weights="fitted"),
                     lambda: evaluate_runs([one], EvaluationOptions(weights="fitted"))):  # fmt: skip
        with pytest.raises(InputError, match=r"weights fitted is for ensembles"):
            evaluate()
    evaluate_runs([another_seed])
    with pytest.raises(InputError, match=r"weights cannot be fitted: .* held out different images for validation"):
        mixmo.Predictor([one.path, another_seed.path], weights="fitted")
    with pytest.raises(InputError, match=r"no common temperature: .* held out different images for validation"):
        export([TrainedRun(one), TrainedRun(another_seed)], "onnx", "no.onnx", options=ExportOptions(temperature=True))
    with pytest.raises(InputError, match=r"weights fitted is for ensembles"):
        export(TrainedRun(one), "onnx", "no.onnx", weights="fitted")


def test_eight_threads_share_a_predictor(gone, new_images):
    """Every prediction equals a single thread's, and the process's global state is unchanged."""
    right, wrong, unchanged = predictions_of_threads(gone, sorted(new_images.iterdir()))
    assert (right, wrong, unchanged) == (200, 0, True)


def test_a_prediction_leaves_the_process_as_it_was(gone, new_images, tmp_path):
    """Also with an exported folder, whose network timm builds; torch's global generator is not used."""
    export(TrainedRun(RunFolder(gone)), "timm", tmp_path / "timm")
    before = shared_state()
    for path in (gone, tmp_path / "timm"):
        mixmo.Predictor(path)(sorted(new_images.iterdir()))
        assert shared_state() == before
