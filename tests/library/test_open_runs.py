"""A run that stays open while its checkpoint or its images change on disk, or that was interrupted."""

import numpy as np
import pytest
import torch
from conftest import Stopping, write_splits
from PIL import Image

import mixmo
from mixmo.errors import InputError

FAST = {"recipe": "digits-cut", "progress": False, "limit_train_batches": 6, "batch_size": 16, "warmup_epochs": 0}


@pytest.fixture
def folder(tmp_path):
    """Random photos to train and test on."""
    return write_splits(tmp_path / "photos", train=12, test=12, size=16)


def fit(folder, out, epochs=1, **options):
    settings = {"channels": 3, "image_size": 16, "validation": 0.25, "out": out}
    return mixmo.fit(train=f"folder:{folder}", epochs=epochs, **FAST, **settings, **options)


def test_results_are_of_the_checkpoint_that_is_on_disk(folder, tmp_path):
    """Else predictions of earlier weights would be cached as those of the new checkpoint, for every later process."""
    fit(folder, tmp_path / "run")
    opened = mixmo.Run(tmp_path / "run")
    before, network = opened.test()["nll"], opened.net
    images = [np.asarray(Image.open(file)) for file in sorted((folder / "test").rglob("*.png"))]
    assert torch.equal(opened.predict(images).logits, opened.predict(images).logits) and opened.net is network
    fit(folder, tmp_path / "run", epochs=3, resume=True)
    fresh = mixmo.Run(tmp_path / "run")
    now = fresh.test(refresh=True)["nll"]
    assert opened.test()["nll"] == now != before
    assert mixmo.Run(tmp_path / "run").test()["nll"] == now
    torch.testing.assert_close(opened.predict(images).logits, fresh.predict(images).logits, rtol=0, atol=0)
    weights = mixmo.load(opened.export("safetensors").path).state_dict()
    wanted = mixmo.load(fresh.export("safetensors").path).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights.items())


def test_a_network_loaded_before_further_training_does_not_answer_for_the_new_checkpoint(folder, tmp_path):
    """Its digest is only asked for later, when the network has been opened already."""
    fit(folder, tmp_path / "run")
    opened = mixmo.Run(tmp_path / "run")
    _ = opened.network
    fit(folder, tmp_path / "run", epochs=3, resume=True)
    found = opened.test()["nll"]
    assert found == mixmo.Run(tmp_path / "run").test(refresh=True)["nll"]


def test_test_images_that_change_are_tested_anew(folder, tmp_path):
    run = fit(folder, tmp_path / "run")
    before = run.test(refresh=True)["nll"]
    for file in (folder / "test").rglob("*.png"):
        Image.effect_noise((16, 16), 90).convert("RGB").save(file)
    after = run.test()["nll"]
    assert after != before and mixmo.Run(run.path).test(refresh=True)["nll"] == after


def test_an_interrupted_run_says_so(folder, tmp_path, caplog):
    with pytest.raises(ZeroDivisionError):
        fit(folder, tmp_path / "run", epochs=3, callbacks=[Stopping(1)])
    run = mixmo.Run(tmp_path / "run")
    for use in (run.test, lambda: mixmo.compare(run.path), lambda: run.export("safetensors")):
        caplog.clear()
        use()
        assert f"{run.path} has finished 1 of 3 epochs; `mixmo fit {run.path}` resumes it." in caplog.text
    caplog.clear()
    fit(folder, tmp_path / "run", epochs=3, resume=True)
    mixmo.Run(run.path).test()
    assert "has finished" not in caplog.text


def test_the_report_is_of_the_runs_checkpoint(folder, tmp_path):
    fit(folder, tmp_path / "run", epochs=3)
    last, best = (mixmo.Run(tmp_path / "run", which) for which in ("last", "best"))
    last.test()
    assert "best checkpoint" not in last.report.read_text()
    if last.folder.digest("best") == last.folder.digest("last"):
        pytest.skip("the last epoch was the best")
    written = last.report.stat().st_mtime_ns
    assert last.report.stat().st_mtime_ns == written  # not tested again
    assert "the best checkpoint on the validation set" in best.report.read_text()


def test_options_without_effect_are_refused(folder, tmp_path):
    run = fit(folder, tmp_path / "run")
    with pytest.raises(InputError, match=r"per_class is not for comparisons; `mixmo test RUN --per_class`"):
        mixmo.compare(run, per_class=True)
    with pytest.raises(InputError, match=f"ood is folder:{folder}, the run's own images"):
        run.test(ood=[f"folder:{folder}"])
    file = run.export("safetensors").path
    with pytest.raises(InputError, match="is an exported network, of one checkpoint; leave checkpoint out"):
        mixmo.Predictor(file, checkpoint="best")
    images = list(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8))
    exact, rounded = (mixmo.Predictor(file, precision=name)(images).logits for name in ("32-true", "bf16-mixed"))
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.1, atol=0.1)
    with pytest.raises(InputError, match=r"precision is bf16-mixed, but .*model\.onnx has its own"):
        mixmo.Predictor(run.export("onnx").path, precision="bf16-mixed")
