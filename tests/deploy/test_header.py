"""A saved network is rebuilt from its header and tensors, regardless of its training settings."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import mixmo
from mixmo import checkpoints
from mixmo.cli.main import main
from mixmo.deploy.export import FORMATS, export
from mixmo.deploy.hub import save_pretrained
from mixmo.deploy.models import open_model
from mixmo.deploy.spec import Spec
from mixmo.errors import InputError, MissingError
from mixmo.evaluation.calibration import fit_calibration
from mixmo.evaluation.inference import TrainedRun
from mixmo.header import FORMAT, Header, Preparation
from mixmo.runs import RunFolder

"""What the version before headers wrote: a run of two members on digits, its weights fused, and shared."""


@pytest.fixture
def run(gone, tmp_path):
    """A copy of a run whose dataset is gone."""
    shutil.copytree(gone, tmp_path / "run", ignore=shutil.ignore_patterns("predictions", "*.html"))
    return RunFolder(tmp_path / "run")


def unreadable(run):
    """Add unknown settings to every section of a run's configuration."""
    config = yaml.safe_load(run.config_file.read_text())
    for section in ("model", "optimizer", "trainer", "data"):
        config[section]["warp"] = 9
    run.config_file.write_text(yaml.safe_dump(config | {"hyperdrive": {"on": True}}))


def missing(run):
    run.config_file.unlink()


def damaged(run):
    run.config_file.write_text("{")


def answers(path, files):
    found = mixmo.Predictor(path)(files)
    return found.probabilities


def with_header(run, header):
    content = checkpoints.load(run.checkpoint_file())
    checkpoints.save(run.checkpoint_file(), content | {"header": header})


@pytest.mark.parametrize("spoilt", [unreadable, missing, damaged])
def test_loading_needs_no_configuration(run, new_images, tmp_path, spoilt, capsys):
    files = sorted(new_images.iterdir())
    expected, state = answers(run.path, files), mixmo.load(run.path).state_dict()
    spoilt(run)
    assert all(torch.equal(tensor, state[name]) for name, tensor in mixmo.load(run.path).state_dict().items())
    assert torch.equal(answers(run.path, files), expected)
    opened = mixmo.Run(run.path)
    assert torch.equal(opened.predict(files).probabilities, expected) and opened.network.num_members == 2
    assert main(["predict", str(run.path), str(files[0])]) == 0
    for format in ("timm", "safetensors"):
        assert main(["export", str(run.path), "--format", format, "--out", str(tmp_path / FORMATS[format])]) == 0
        assert opened.export(format).difference < 1e-4
        torch.testing.assert_close(answers(tmp_path / FORMATS[format], files), expected, atol=1e-5, rtol=1e-4)
    if spoilt is not damaged:  # the model card names the method
        shared = save_pretrained(run.path, tmp_path / "shared")
        assert torch.equal(answers(shared, files), expected)


def test_evaluation_leaves_out_unknown_settings_of_training_and_says_so(trained, tmp_path, capsys):
    _, two, _ = trained
    shutil.copytree(two.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    config = yaml.safe_load(run.config_file.read_text())
    config["optimizer"]["warp"] = 9
    run.config_file.write_text(yaml.safe_dump(config))
    assert main(["test", str(run.path)]) == 0
    assert capsys.readouterr().err.count("sets optimizer.warp, which this version of mixmo does not know") == 1
    config["data"]["fold"] = 1
    run.config_file.write_text(yaml.safe_dump(config))
    assert main(["test", str(run.path)]) == 2
    assert "data.fold" in capsys.readouterr().err
    run.config_file.unlink()
    assert main(["test", str(run.path)]) == 2
    assert "config.yaml is missing" in capsys.readouterr().err


@pytest.mark.parametrize("format", FORMATS)
def test_every_export_carries_the_header(gone, exported, format):
    out = exported[format]
    spec = open_model(out).spec
    assert Header.from_dict(spec.to_dict()) == RunFolder(gone).header() and spec.calibration is not None
    images = torch.randn(2, 3, 12, 12)
    if format in ("timm", "safetensors"):
        net = mixmo.load(out)
        assert net.num_members == 1 and not net.training
        with torch.no_grad():
            torch.testing.assert_close(net(images), mixmo.load(gone)(images), atol=1e-5, rtol=1e-4)
            assert torch.equal(mixmo.fuse(net)(images), net(images))
    else:
        with pytest.raises(InputError, match=r"is an ONNX graph; predict with mixmo\.Predictor"):
            mixmo.load(out)


def test_shared_folders_are_loaded_by_their_header(gone, tmp_path):
    folder = save_pretrained(gone, tmp_path / "shared")
    (folder / "config.yaml").write_text("hyperdrive: {}")
    net, expected = mixmo.load(folder), mixmo.load(gone).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(InputError, match=r"members\.safetensors does not name .* load the folder"):
        mixmo.load(folder / "members.safetensors")
    spec = json.loads((folder / "mixmo.json").read_text())
    assert spec["format"] == FORMAT and spec["num_members"] == 2
    with pytest.raises(MissingError, match=r"use hf-hub:me/photos"):
        mixmo.load("me/photos")


def test_a_newer_format_is_refused(run, tmp_path):
    newer = rf"is of format {FORMAT + 1}, but this version of mixmo reads formats up to {FORMAT}: update mixmo\."
    export(TrainedRun(run), "safetensors", tmp_path / "a.safetensors")
    folder = save_pretrained(run.path, tmp_path / "shared")
    with_header(run, run.header().to_dict() | {"format": FORMAT + 1, "warp": 9})
    for call in (mixmo.load, mixmo.Predictor):
        with pytest.raises(InputError, match=rf"last\.ckpt {newer}"):
            call(run.path)
    spec = json.loads((folder / "mixmo.json").read_text())
    spec = {key: value for key, value in spec.items() if key not in ("files", "sha256")} | {"format": FORMAT + 1}
    (folder / "mixmo.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match=rf"mixmo\.json {newer}"):
        mixmo.load(folder)
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", {"mixmo.json": json.dumps(spec)})
    with pytest.raises(InputError, match=rf"b\.safetensors {newer}"):
        mixmo.load(tmp_path / "b.safetensors")


DAMAGED = {
    "format": [None, 0, "1", True],
    "classes": [[], ["a", 2, "c"], "abc", None],
    "size": [[8], [8, -8], [8, 8.5], None],
    "data": [None, {}, {"channels": 2}, {"mean": [1, 2]}, {"std": [0]}, {"window": [1]}, {"sharpness": 1}],
    "backbone": ["wide_resnet10_2", "nothing", 3],
    "options": [None, {"no_such_option": 1}, {"num_classes": 5}],
    "num_members": [0, 3, "2", 101],
    "mix_at": [3, "stages.0"],
    "warp": [9],
}


@pytest.mark.parametrize("key", DAMAGED)
def test_a_damaged_header_is_one_sentence(run, key):
    header = run.header().to_dict()
    for value in DAMAGED[key]:
        changed = value if not (key == "data" and value) else header["data"] | value
        with_header(run, header | {key: changed})
        with pytest.raises(InputError, match=r"last\.ckpt (is damaged, or not|does not hold the network)") as found:
            mixmo.load(run.path)
        assert "\n" not in str(found.value) and str(found.value).endswith((".", "?"))
    if key not in ("mix_at", "options", "backbone", "num_members", "warp"):
        with_header(run, {name: value for name, value in header.items() if name != key})
        with pytest.raises(InputError, match=r"last\.ckpt is damaged"):
            mixmo.load(run.path)


def test_classes_whose_names_are_no_unicode_are_kept(run):
    header = run.header().to_dict() | {"classes": ["cat", "caf\udce9", "emu"]}
    with_header(run, header)
    assert run.header().classes[1] == "caf\udce9" and mixmo.load(run.path).num_classes == 3


def test_weights_say_what_they_are(exported, tmp_path):
    save_file(load_file(exported["safetensors"]), tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"b\.safetensors does not name the network of its tensors"):
        mixmo.load(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"c\.safetensors cannot be read as safetensors"):
        mixmo.load(tmp_path / "c.safetensors")


def test_descriptions_are_read_again_and_checked():
    calibration = fit_calibration(torch.randn(30, 2), torch.randint(2, (30,)))
    data = Preparation(crop_size=6, mean=[0.1, 0.2, 0.3], std=[0.5], interpolation="bilinear", channels=3)
    spec = Spec(["a", "ü"], (8, 9), data, calibration=calibration)
    again = Spec.from_json(spec.to_json())
    assert (again.classes, again.size, again.data, again.input_size) == (spec.classes, (8, 9), data, (6, 6))
    assert torch.equal(again.calibration.targets, calibration.targets)
    for coverage in (0.5, 0.9):
        assert torch.equal(again.calibration.set_thresholds(coverage, 2), calibration.set_thresholds(coverage, 2))
    for text in (
        "",
        "{}",
        "[]",
        spec.to_json().replace("[8, 9]", "[8, -9]"),
        spec.to_json().replace('"mean"', '"meen"'),
    ):
        with pytest.raises(InputError, match=r"x\.onnx is damaged, or not mixmo's"):
            Spec.from_json(text, "x.onnx")
