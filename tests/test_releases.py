"""The trained runs shipped with the package."""

from pathlib import Path

import pytest

import mixmo
from mixmo.cli.main import main
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.config.settings import values_of
from mixmo.releases import RELEASES


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["fit", "digits-cut", "--released", "--run", str(folder)]) == 0
    return folder


def test_a_released_run_is_tested_predicts_and_is_exported(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = mixmo.Run(released)
    assert run.test()["accuracy"] > 0.97
    found = run.predict(released / "digit.png", sets="classwise")  # its calibration is not by an earlier version
    assert found.classes[found.labels[0]] == "7"
    assert found.confidence[0] > 0.9 and found.sets is not None
    assert main(["export", str(released), "--format", "safetensors"]) == 0
    assert main(["fit", str(released)]) == 0
    assert "finished" in capsys.readouterr().out


def test_a_released_run_has_the_settings_of_its_recipe(released: Path) -> None:
    for name in RELEASES:
        assert values_of(mixmo.Run(released).settings) == values_of(make_plan(load_recipe(name)).settings)


def test_what_cannot_be_released_is_refused(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, error in (
        (["digits-cut", "--run", str(released)], "exists already; choose another folder with --run"),
        (["digits-cut", "--seed", "3"], "leave out --seed"),
        (["digits-single"], "released run 'digits-single'"),
    ):
        assert main(["fit", *words, "--released"]) == 2
        assert error in capsys.readouterr().err
