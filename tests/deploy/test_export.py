"""Exported files predict like the trained network, in their target programs; a failed export leaves nothing."""

import contextlib
import json
import logging
import math
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from conftest import describe_otherwise, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import mixmo
from mixmo.cli.main import main
from mixmo.deploy import export as module
from mixmo.deploy.export import ExportOptions, export
from mixmo.deploy.hub import save_pretrained
from mixmo.deploy.models import open_model
from mixmo.deploy.spec import Spec, describe_run
from mixmo.errors import InputError
from mixmo.evaluation.calibration import fit_calibration
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.results import evaluate_runs
from mixmo.header import Preparation
from mixmo.metrics.temperature import weight_members
from mixmo.runs import RunFolder

HOW = Preparation(channels=3, interpolation="bicubic", mean=[0.5], std=[0.5], crop_size=None)


@pytest.fixture(autouse=True)
def _needs_onnx():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")


@pytest.mark.parametrize("format", ["timm", "onnx"])
def test_exports_predict_as_the_run(gone, new_images, tmp_path, capsys, format):
    """Calibrated, with sets and deferral, from the file alone."""
    out = tmp_path / module.FORMATS[format]
    assert main(["export", str(gone), "--format", format, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "its log-probabilities differ" in said and str(out) in said
    needs_mixmo = "wide_resnet10_1 is not in timm: `import mixmo` before" in said  # which registers it
    assert needs_mixmo == (format == "timm") == ("import mixmo" in said)
    files = sorted(new_images.iterdir())
    expected, found = mixmo.Predictor(gone)(files), mixmo.Predictor(out)(files)
    torch.testing.assert_close(found.probabilities, expected.probabilities, atol=1e-5, rtol=1e-4)
    assert found.classes == expected.classes and torch.equal(found.defer, expected.defer)
    assert torch.equal(found.sets, expected.sets)


@pytest.mark.parametrize(
    ("normalize", "softmax", "members"),
    [(False, False, False), (True, True, False), (True, False, True), (False, True, True)],
)
def test_graphs_compute_what_was_asked_for(gone, tmp_path, normalize, softmax, members):
    """Against a manual computation, for any batch; mixmo undoes the options when it predicts with the file.

    Every pair of options is covered.
    """
    run = TrainedRun(RunFolder(gone))
    options = ExportOptions(normalize=normalize, softmax=softmax, members=members, temperature=softmax)
    out = export(run, "onnx", tmp_path / "model.onnx", options).path
    model = open_model(out)
    pixels = torch.randint(256, (5, 3, 12, 12)).float()
    shown = pixels if normalize else (pixels / 255 - 0.3) / 0.37
    found = [torch.from_numpy(each) for each in model.session.run(None, {"images": shown.numpy()})]
    with torch.no_grad():
        logits = mixmo.load(gone).members((pixels / 255 - 0.3) / 0.37)
    temperature = model.spec.calibration.temperature if softmax else 1
    expected = logits.mean(1) / temperature
    torch.testing.assert_close(found[0], expected.softmax(1) if softmax else expected, atol=1e-4, rtol=1e-4)
    assert len(found) == (3 if members else 1)
    if members:
        p = logits.softmax(2)
        torch.testing.assert_close(found[1], p, atol=1e-5, rtol=1e-4)
        entropy = -torch.special.xlogy(p.mean(1), p.mean(1)).sum(1) + torch.special.xlogy(p, p).sum(2).mean(1)
        torch.testing.assert_close(found[2], entropy, atol=1e-5, rtol=1e-3)
    images = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    again = model.logits(images).mean(1).log_softmax(1)
    with torch.no_grad():
        direct = mixmo.load(gone)(*model.spec.views(images)).log_softmax(1)
    torch.testing.assert_close(again, direct, atol=1e-4, rtol=1e-4)


WITHOUT_MIXMO = """
import sys
sys.modules["mixmo"] = None  # importing it fails
import timm, torch
net = timm.create_model("local-dir:exported", pretrained=True).eval()
content = torch.load("content.pt", weights_only=True)
prepare = timm.data.create_transform(**timm.data.resolve_data_config({}, model=net))
fused = timm.create_model("resnet18", num_classes=3, checkpoint_path="fused.pt").eval()
for each in (net, fused):
    print((each(content["images"]) - content["logits"]).abs().max().item() < 1e-4)
print(net.pretrained_cfg["label_names"], prepare.transforms[-1].mean.tolist(), tuple(prepare.transforms[1].size))
"""


@pytest.mark.slow
def test_timm_opens_the_folder_and_a_fused_network_without_mixmo(tmp_path, monkeypatch):
    """With class names and preprocessing, for one of timm's backbones."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", count=8, size=40)
    words = ["--data.name=folder:photos", "--data.channels=3", "--data.image_size=36", "--data.crop_size=32"]
    words += ["--data.batch_size=8", "--data.mean=[0.1,0.2,0.3]", "--data.std=[0.5]", "--model.backbone=resnet18"]
    assert main(["fit", "digits-cut", *words, "--data.validation=0", "--trainer.max_epochs=1", "--run=run"]) == 0
    assert main(["export", "run", "--format=timm", "--out=exported"]) == 0
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.save({"images": images, "logits": mixmo.load("run")(images)}, "content.pt")
    torch.save(mixmo.fuse(mixmo.load("run")).state_dict(), "fused.pt")
    done = subprocess.run([sys.executable, "-c", WITHOUT_MIXMO], capture_output=True, text=True)
    prepared = "['cat', 'dog', 'emu'] [0.10000000149011612, 0.20000000298023224, 0.30000001192092896] (32, 32)"
    assert done.stdout.splitlines() == ["True", "True", prepared], done.stderr
    assert main(["export", "run", "--format=safetensors"]) == 0
    plain = timm.create_model("resnet18", num_classes=3, checkpoint_path="run/model.safetensors").eval()
    torch.testing.assert_close(plain(images), mixmo.load("run")(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format=tflite"], "unknown format 'tflite'"),
        (["--format=timm", "--softmax"], "--softmax is for onnx; timm holds only weights"),
        (["--format=safetensors", "--members"], "--members is for onnx; safetensors holds only weights"),
        (["--format=onnx", "--out=file/model.onnx"], "cannot be"),
        (["--format=timm", "--out=full"], "full exists already and is not a recognised mixmo output"),
        (["--format=timm", "--out=full", "--overwrite"], "full exists already and is not a recognised mixmo output"),
        (["--format=timm", "--out=run"], "run exists already and is not a recognised mixmo output"),
        (["--format=timm", "--out=file"], "file exists already and is not a recognised mixmo output"),
        (
            ["--format=onnx", "--out=file"],
            "file exists already and is not a recognised mixmo output; choose another path",
        ),
        (["--format=onnx", "--out=full"], "full is a folder; choose a file to write (out)"),
        (["--format=onnx", "--out=full", "--overwrite"], "full is a folder; choose a file to write (out)"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(gone, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("mixmo.json", "metrics.csv"):  # an earlier export, and more
        (tmp_path / "run" / name).write_text("mine")
    out = [] if any(word.startswith("--out") for word in words) else ["--out=model.onnx"]
    assert main(["export", str(gone), *words, *out]) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown and shown.count("\n") == 0
    assert sorted(each.name for each in tmp_path.rglob("*")) == [
        "file", "full", "metrics.csv", "mine.txt", "mixmo.json", "run",
    ]  # fmt: skip


def test_an_export_whose_place_cannot_be_taken_leaves_the_earlier_one(gone, tmp_path, monkeypatch, capsys):
    out = tmp_path / "timm"
    assert main(["export", str(gone), "--format=timm", "--out", str(out)]) == 0
    files, rename = {path: path.read_bytes() for path in out.iterdir()}, Path.rename

    def fails_once_in_place(self, target):
        if Path(target) == out and self.name != "earlier":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_once_in_place)
    assert main(["export", str(gone), "--format=timm", "--out", str(out)]) == 2
    assert "No space left" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == files
    assert [each.name for each in tmp_path.iterdir()] == ["timm"]


@given(st.data())
@settings(max_examples=60)
def test_damaged_descriptions_are_one_sentence(data):
    calibration = fit_calibration(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    content = json.loads(Spec(["cat", "dog"], (8, 8), HOW, calibration=calibration).to_json())
    places = [(content, key) for key in content] + [(content[key], one) for key in ("data", "calibration")
                                                    for one in content[key]]  # fmt: skip
    where, key = data.draw(st.sampled_from(places))
    values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    where[key] = data.draw(st.recursive(values, lambda own: st.lists(own, max_size=3), max_leaves=4))
    text = json.dumps(content)
    text = data.draw(st.sampled_from([text, text[: len(text) // 2], "[" * 5000, f"[{text}]"]))
    with contextlib.suppress(InputError):
        found = Spec.from_json(text, "a.onnx")
        assert found.classes and found.input_size
        assert found.calibration is None or 0 < found.calibration.temperature < math.inf


@pytest.mark.parametrize(
    ("key", "value"),
    [("targets", [-1, 1]), ("targets", [0, 1.7]), ("correct", [0.3, 1]), ("confidence", [0.5, 2.0]), ("raps", ["a", 1]),
     ("raps", [1e400, 1]), ("aps", []), ("likely", [0.5]), ("temperature", "2.5"), ("temperature", 0)],
)  # fmt: skip
def test_a_calibration_of_other_numbers_is_damaged(key, value):
    calibration = fit_calibration(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    content = json.loads(Spec(["cat", "dog"], (8, 8), HOW, calibration=calibration).to_json())
    content["calibration"][key] = value
    wanted = "columns of one length" if key == "likely" else key if key != "temperature" else "a positive temperature"
    with pytest.raises(InputError, match=f"a.onnx is damaged, or not mixmo's: calibration is .* must have {wanted}"):
        Spec.from_json(json.dumps(content), "a.onnx")


@pytest.mark.parametrize("members", [False, True])
def test_an_ensemble_is_one_file(trained, new_images, tmp_path, members):
    """Weighted and calibrated like the runs together; the members of both are separate on request."""
    pytest.importorskip("onnxruntime")
    files, paths = sorted(new_images.iterdir()), [str(run.path) for run in trained[1:]]
    evaluate_runs(trained[1:])  # which keeps predictions on validation images
    words = ["--format=onnx", "--weights=fitted", f"--members={str(members).lower()}", f"--out={tmp_path}/both.onnx"]
    assert main(["export", "+".join(paths), *words]) == 0
    expected = mixmo.Predictor(paths, weights="fitted")(files)
    found = mixmo.Predictor(tmp_path / "both.onnx")(files)
    torch.testing.assert_close(found.probabilities, expected.probabilities, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.sets, expected.sets) and torch.equal(found.defer, expected.defer)
    if members:
        torch.testing.assert_close(found.agreement, expected.agreement)


def test_runs_that_do_not_fit_are_not_one_file(trained, gone, tmp_path, capsys):
    _, two, one = trained
    for words, message in {
        (f"{two.path}+{gone}", "--format=onnx", "--out=a.onnx"): f"{gone} prepares images differently from {two.path}",
        (f"{two.path}+{two.path}", "--format=onnx", "--out=a.onnx"): "a run is named twice",
        (f"{two.path}+{one.path}", "--format=onnx"): "several runs are exported as one .onnx file; name it (out)",
        (
            f"{two.path}+{one.path}",
            "--format=timm",
            "--out=a",
        ): "format timm holds one network; export several runs as onnx",
    }.items():
        assert main(["export", *words]) == 2
        assert message in capsys.readouterr().err


def test_networks_of_shared_weights_are_written(tmp_path):
    images = torch.randint(256, (32, 32, 32, 3), dtype=torch.uint8), torch.arange(32) % 2
    run = mixmo.fit("coat_tiny", images, epochs=1, batch_size=8, lr=0.01, crop_size=None, limit_train_batches=1,
                    progress=False, model_options={"img_size": 32})  # fmt: skip
    x = torch.randn(2, 3, 32, 32)
    folders = save_pretrained(run, tmp_path / "shared"), run.export("timm").path, run.export("safetensors").path
    for folder in folders:
        torch.testing.assert_close(mixmo.load(folder)(x), run.network.cpu()(x), atol=1e-4, rtol=1e-4)


def test_crops_that_timm_places_elsewhere_are_warned_of(tmp_path, caplog):
    images = torch.randint(256, (24, 9, 9, 3), dtype=torch.uint8), torch.arange(24) % 2
    run = mixmo.fit("wide_resnet10_1", images, epochs=1, batch_size=8, crop_size=6, padding=0, progress=False)
    run.export("timm")
    assert "timm's own transform crops 6×6 from 9×9 one pixel further down and right" in caplog.text


def test_descriptions_keep_every_digit():
    likely = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = replace(fit_calibration(torch.rand(50, 2), torch.arange(50) % 2), temperature=1 / 3)
    spec = Spec(["a", "b"], (8, 8), HOW, calibration=replace(kept, likely=likely, confidence=likely))
    again = Spec.from_json(spec.to_json()).calibration
    assert again.temperature == 1 / 3 and torch.equal(again.likely, likely) and torch.equal(again.confidence, likely)


def test_descriptions_keep_every_image_and_any_name():
    """A stride through 20,000 sorted images would leave out a class; names of folders may be no valid Unicode."""
    kept = fit_calibration(torch.rand(20_000, 2), torch.arange(20_000) % 2)
    spec = Spec(["a", "caf\udce9"], (8, 8), HOW, calibration=kept)
    again = Spec.from_json(spec.to_json().encode("utf-8").decode("utf-8"))
    assert torch.equal(again.calibration.targets, kept.targets) and again.classes == spec.classes


def test_networks_of_weight_zero_are_no_members(trained):
    """As in predictions of the ensemble."""
    runs = [TrainedRun(run) for run in trained[1:]]
    spec, images = runs[0].network, torch.rand(3, 3, 8, 8)
    for scales, used in (([2.0, 0.0], 2), ([0.0, 2.0], 1), ([1.5, 0.5], 3)):
        expected = weight_members([run.network.members(images) for run in runs], scales)
        for members in (True, False):
            plain, _ = module._fuse_runs(runs, scales, describe_run(runs[0]), members)
            found = plain(images).unflatten(1, (-1, spec.num_classes))
            assert found.shape[1] == (used if members else sum(scale > 0 for scale in scales))
            torch.testing.assert_close(found if members else found.mean(1, True), expected if members else
                                       expected.mean(1, True), rtol=1e-4, atol=1e-4)  # fmt: skip


def test_exports_at_once_leave_messages_as_they_were():
    before = logging.root.manager.disable

    def silence():
        with module._quiet():
            time.sleep(0.2)

    threads = [threading.Thread(target=silence) for _ in range(2)]
    threads[0].start()
    time.sleep(0.1)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert logging.root.manager.disable == before


def test_crops_beyond_the_image_are_black_also_where_the_file_normalises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", count=8)
    words = ["--data.name=folder:photos", "--data.channels=3", "--data.image_size=8", "--data.crop_size=12"]
    words += ["--data.batch_size=8", "--data.validation=0", "--trainer.max_epochs=1", "--run=run"]
    assert main(["fit", "digits-cut", *words]) == 0
    assert main(["export", "run", "--format=onnx", "--normalize", "--out=a.onnx"]) == 0
    files = sorted((tmp_path / "photos/cat").iterdir())
    expected, found = mixmo.Predictor("run")(files), mixmo.Predictor("a.onnx")(files)
    torch.testing.assert_close(found.probabilities, expected.probabilities, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("format", module.FORMATS)
def test_a_failed_export_leaves_the_earlier_one(gone, exported, tmp_path, monkeypatch, capsys, format):
    """For example if it predicts differently: a file counts as written once it has been verified."""
    out = tmp_path / module.FORMATS[format]
    (shutil.copytree if exported[format].is_dir() else shutil.copy)(exported[format], out)
    assert main(["export", str(gone), "--format", format, "--out", str(out)]) == 0  # takes its own place
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    fuse = module.fuse
    changed = lambda *words: torch.nn.Sequential(fuse(*words), torch.nn.Softmax(1))  # noqa: E731
    if format == "onnx":
        monkeypatch.setattr(module, "fuse", changed)
    else:
        monkeypatch.setattr("safetensors.torch.save", lambda *words: (_ for _ in ()).throw(OSError(28, "disk full")))
    assert main(["export", str(gone), "--format", format, "--out", str(out)]) == 2
    assert ("does not match the network" if format == "onnx" else "disk full") in capsys.readouterr().err
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == files


def test_networks_that_cannot_be_fused_say_why(gone, tmp_path, capsys):
    shutil.copytree(gone, tmp_path / "run")
    describe_otherwise(RunFolder(tmp_path / "run"), mix_at="stages.0")
    assert main(["export", str(tmp_path / "run"), "--format=onnx"]) == 2
    assert "does not hold the network" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_libraries_that_are_missing_are_named(gone, tmp_path, monkeypatch, capsys, library):
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["export", str(gone), "--format=onnx", f"--out={tmp_path}/a.onnx"]) == 2
    assert "`pip install 'mixmo[onnx]'` installs it" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_files_say_what_they_are(exported):
    """Other programs can read the description in each file's metadata."""
    onnx = pytest.importorskip("onnx")
    notes = {each.key: each.value for each in onnx.load(exported["onnx"]).metadata_props}
    assert json.loads(notes["mixmo.json"])["classes"] == ["cat", "dog", "emu"]
    assert json.loads((exported["timm"] / "mixmo.json").read_text())["size"] == [16, 16]
    with safe_open(exported["safetensors"], "pt") as content:
        assert json.loads(content.metadata()["mixmo.json"])["backbone"] == "wide_resnet10_1"


def test_an_export_leaves_the_runs_network_on_its_device(gone, tmp_path, monkeypatch):
    """Only a copy is moved to the CPU."""
    run, moved = TrainedRun(RunFolder(gone)), []
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda self: moved.append(self) or self)
    export(run, "safetensors", tmp_path / "a.safetensors")
    assert moved and all(each is not run.network for each in moved)


def test_what_is_in_an_exports_place_stays_unless_it_is_an_export(gone, tmp_path, capsys):
    """Other programs' files and folders, links, and edited exports; --overwrite replaces files only."""
    weights, link, folder = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "timm"
    weights.write_bytes(b"months of training")
    link.symlink_to(weights)
    folder.mkdir()
    for name in module.TIMM_FILES:
        (folder / name).write_text("mine")
    for place, format in ((weights, "safetensors"), (link, "safetensors"), (folder, "timm")):
        assert main(["export", str(gone), "--format", format, "--out", str(place)]) == 2
        assert f"{place} exists already and is" in capsys.readouterr().err
    assert weights.read_bytes() == b"months of training" and (folder / "config.json").read_text() == "mine"
    assert main(["export", str(gone), "--format=safetensors", "--out", str(link), "--overwrite"]) == 0
    assert weights.read_bytes() == b"months of training" and not link.is_symlink()
    assert main(["export", str(gone), "--format=safetensors", "--out", str(weights), "--overwrite"]) == 0
    assert main(["export", str(gone), "--format=safetensors", "--out", str(weights)]) == 0
    assert main(["export", str(gone), "--format=timm", "--out", str(folder), "--overwrite"]) == 0
    assert main(["export", str(gone), "--format=timm", "--out", str(folder)]) == 0
    (folder / "notes.txt").write_text("mine")
    assert main(["export", str(gone), "--format=timm", "--out", str(folder), "--overwrite"]) == 2
    assert (folder / "notes.txt").read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "timm"]
