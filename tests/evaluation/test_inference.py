"""One evaluation opens a run only once, for any options."""

import shutil
from pathlib import Path

import pytest
from conftest import copy_run, write_images

from mixmo import runs
from mixmo.data import module as data_module
from mixmo.errors import InputError
from mixmo.evaluation import inference, robustness
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.results import EvaluationOptions, evaluate_runs


def test_an_evaluation_opens_a_run_once(trained, tmp_path, monkeypatch):
    """Test, validation and OOD images and corruptions: one configuration, one network, one test set."""
    folder, run, _ = trained
    run = copy_run(run, folder, tmp_path)
    called = []

    def count(module, name, describe=lambda *arguments: ""):
        honest = getattr(module, name)

        def counted(*arguments, **options):
            called.append(f"{name} {describe(*arguments)}".strip())
            return honest(*arguments, **options)

        monkeypatch.setattr(module, name, counted)

    count(runs, "make_plan")
    count(inference, "load_checkpoint")
    count(data_module.NamedDataset, "open", lambda dataset, split: f"{Path(dataset.name).name} {split}")
    count(data_module, "build_image_set", lambda source, *_: len(source))
    monkeypatch.setattr(robustness, "KINDS", {"fog": robustness.KINDS["fog"]})
    other = f"folder:{folder}/other"
    result = evaluate_runs([run], EvaluationOptions(ood=[other], corruptions=True))
    assert list(result.ood) == [other] and list(result.corruptions.kinds) == ["fog"]
    decoded = [call for call in called if call.startswith("build_image_set")]
    assert sorted(decoded) == [
        "build_image_set 12",
        "build_image_set 16",
        "build_image_set 9",
    ]  # test, other, validation
    assert [called.count(f"open data {split}") for split in ("train", "test")] == [1, 1]
    assert called.count("make_plan") == called.count("load_checkpoint") == 1
    called.clear()
    evaluate_runs([run], EvaluationOptions(ood=[other], corruptions=True))
    assert not [call for call in called if call.startswith(("build_image_set", "load_checkpoint"))]  # all is cached


@pytest.mark.parametrize(
    ("classes", "message"),
    [(("cat", "dog"), "not in both: emu"), (("cat", "dog", "zebu"), "not in both: emu, zebu"), (None, "16×16 pixels")],
)
def test_a_dataset_with_other_classes_or_sizes_is_refused(trained, tmp_path, classes, message):
    folder, run, _ = trained
    run = copy_run(run, folder, tmp_path)
    classes = classes or TrainedRun(run).header.classes
    shutil.rmtree(tmp_path / "data")
    for split in ("train", "test"):
        write_images(tmp_path / "data" / split, classes=classes, size=16)
    with pytest.raises(InputError, match=message):
        TrainedRun(run).images("test")


def test_a_run_is_not_an_ensemble_with_itself(trained):
    _, run, _ = trained
    with pytest.raises(InputError, match="names a run twice; an ensemble needs different runs"):
        evaluate_runs([run, run])
