"""12-bit values in 16-bit files, distinguished by a window, in every form of the network."""

import numpy as np
import pytest
from conftest import plan_of
from PIL import Image

import mixmo
from mixmo.cli.main import main
from mixmo.config.data_settings import DataSettings
from mixmo.deploy.hub import save_pretrained
from mixmo.deploy.spec import Spec
from mixmo.errors import InputError
from mixmo.evaluation.results import evaluate_runs
from mixmo.header import Preparation
from mixmo.runs import RunFolder
from mixmo.training.fit import fit


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Two classes that differ by their level alone, and a run on them."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    for split in ("train", "test"):
        for level, name in ((1452, "cat"), (1542, "dog")):
            (folder / split / name).mkdir(parents=True)
            for index in range(12):
                values = (level + rng.integers(0, 6, (8, 8))).astype(np.uint16)
                Image.fromarray(values).save(folder / split / name / f"{index}.png")
    words = ["--data.channels=1", "--data.window=[1400, 1600]", "--trainer.max_epochs=6", "--data.mean=[0.5]"]
    run = RunFolder(folder / "run")
    fit(plan_of(folder, *words, "--data.std=[0.25]"), run)
    return folder, run


def test_classes_within_one_grey_level_are_told_apart(tones):
    folder, run = tones
    assert evaluate_runs([run]).metrics.average["accuracy"] == 1
    files = sorted((folder / "test").glob("*/*.png"))
    right = [file.parent.name for file in files]
    shared = save_pretrained(run.path, folder / "shared")
    assert main(["export", str(run.path), "--format", "onnx", "--out", str(folder / "net.onnx")]) == 0
    for network in (run.path, shared, folder / "net.onnx"):
        answers = mixmo.Predictor(network)(files)
        assert [answers.classes[number] for number in answers.labels] == right


def test_descriptions_of_earlier_versions_have_no_window():
    spec = Spec(["cat", "dog"], (8, 8), Preparation.of(DataSettings(window=[0.0, 4095.0])))
    assert Spec.from_json(spec.to_json()).data.window == [0.0, 4095.0]
    earlier = spec.to_json().replace(', "window": [0.0, 4095.0]', "")
    assert "window" not in earlier and Spec.from_json(earlier).data.window is None


@pytest.mark.parametrize("window", [[1.0], [2.0, 2.0], [3.0, 1.0]])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(InputError, match=r"data\.window is"):
        DataSettings(window=window)


def test_colours_of_four_bands_are_not_changed():
    with pytest.raises(InputError, match=r"set data\.policy to none and data\.color_jitter to 0"):
        DataSettings(channels=4, policy="randaugment")
