"""One evaluation opens a run once, whatever it is asked for."""

import shutil

import pytest
from conftest import moved, write_images

from mixmo.errors import InputError
from mixmo.evaluation import inference, robustness
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.results import GENERATED, EvaluationOptions, evaluate_runs


def test_an_evaluation_opens_a_run_once(trained, tmp_path, monkeypatch):
    """Test, validation and OOD images and corruptions: one configuration, one network, one test set."""
    folder, run, _ = trained
    run = moved(run, folder, tmp_path)
    called = []

    def count(name):
        honest = getattr(inference, name)

        def counted(*arguments):
            called.append((name, *arguments[1:]) if name == "load_test_images" else name)
            return honest(*arguments)

        monkeypatch.setattr(inference, name, counted)

    for name in ("make_plan", "load_checkpoint", "load_test_images", "load_validation_images"):
        count(name)
    monkeypatch.setattr(robustness, "KINDS", {"fog": robustness.KINDS["fog"]})
    other = f"folder:{folder}/strangers"
    result = evaluate_runs([run], EvaluationOptions(ood=[other], corruptions=GENERATED))
    assert list(result.ood) == [other] and list(result.corruptions.kinds) == ["fog"]
    wanted = ["make_plan", "load_checkpoint", ("load_test_images",), ("load_test_images", other)]
    assert called == [*wanted, "load_validation_images"]
    called.clear()
    evaluate_runs([run], EvaluationOptions(ood=[other], corruptions=GENERATED))
    assert called == ["make_plan"]  # everything else is kept


def test_a_dataset_with_other_classes_is_refused(trained, tmp_path):
    folder, run, _ = trained
    run = moved(run, folder, tmp_path)
    shutil.rmtree(tmp_path / "data")
    for split in ("train", "test"):
        write_images(tmp_path / "data" / split, classes=("cat", "dog"))
    with pytest.raises(InputError, match=r"has 2 classes, but .* was trained on 3"):
        TrainedRun(run).images("test")
