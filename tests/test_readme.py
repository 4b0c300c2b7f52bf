"""The README's Python runs, and so does every command (shortened to seconds)."""

import ast
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import timm
import torch
from conftest import write_images
from safetensors.torch import load_file, save_file

from mixmo.cli.main import main
from mixmo.deploy.predictor import Predictor
from mixmo.evaluation import robustness
from mixmo.masks import KINDS

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND_LINE = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
EVALUATION = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
WHEN = (ROOT / "docs" / "when-it-pays.md").read_text(encoding="utf-8")
MASKS = (ROOT / "docs" / "masks.md").read_text(encoding="utf-8")
SHRUNK = ["--data.batch_size=8", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
SHRUNK += ["--model.backbone=wide_resnet10_1", "--mixer.probability=1", "--mixer.progress=steps"]


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_python_runs(tmp_path, monkeypatch):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)  # it writes a file
    code = "\n".join(blocks("python") + blocks("python", COMMAND_LINE))
    assert "mixmo.fuse" in code
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["logits"].shape == (64, 10) and names["metrics"]["accuracy"] == pytest.approx(
        (names["logits"].argmax(1) == names["labels"]).double().mean().item()
    )
    with torch.no_grad():
        torch.testing.assert_close(names["plain"](names["images"]), names["logits"], atol=1e-5, rtol=0)


def test_the_readme_is_short():
    """So that it is read to the end."""
    assert len(README.splitlines()) <= 120


@pytest.mark.slow
def test_commands_run(tmp_path, monkeypatch, capsys, observed, traced, few_masks):
    """In the pages' order, in one folder; training is shortened and pictures replace downloads."""
    write_images(tmp_path / "pictures" / "train", size=32)
    write_images(tmp_path / "pictures" / "test", count=2, size=32)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(robustness, "KINDS", {kind: robustness.KINDS[kind] for kind in ("fog", "contrast")})
    np.savez("theirs.npz", logits=np.zeros((6, 3)), targets=np.zeros(6, int))
    (tmp_path / "digit.png").write_bytes((tmp_path / "pictures/test/cat/000.png").read_bytes())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (sweep,) = (block for block in blocks("yaml", COMMAND_LINE) if "sweep:" in block)
    (tmp_path / "alpha.yaml").write_text(sweep)
    shown = (
        blocks("sh")
        + blocks("sh", COMMAND_LINE)
        + blocks("sh", MASKS)
        + blocks("sh", WHEN)
        + blocks("sh", EVALUATION)[:1]
    )
    lines = [line.partition("#")[0].strip() for block in shown for line in block.splitlines()]
    commands = list(dict.fromkeys(line for line in lines if line.startswith("mixmo ")))
    assert len(commands) >= 17
    for line in commands:
        words = shlex.split(line)[1:]
        trains = words[0] == "fit" and "--released" not in words
        if trains or words[0] in ("preview", "sweep"):
            words += SHRUNK + ([] if "digits-cut" in line or "alpha.yaml" in line else ["--data.name=folder:pictures"])
        if words[0] == "benchmark":
            words += ["--backbone=wide_resnet10_1", "--batch_size=2", "--image_size=8", "--rounds=1"]
        observed.shaped.clear()
        words = ["folder:pictures" if word.startswith("torch/") else word for word in words]
        assert main(words) == 0, line
        if trains:
            shaped = "single" not in line and "linear" not in line
            assert observed.shaped == [shaped], line
    capsys.readouterr()


@pytest.mark.slow
def test_guides_run(tmp_path, monkeypatch, capsys):
    """The commands and the Python of three guides, in one folder of photos; training is shortened."""
    for library in ("kornia", "onnxruntime", "onnxscript"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", count=16, size=40)
    (tmp_path / "new.jpg").write_bytes((tmp_path / "photos/cat/000.png").read_bytes())
    for name in ("pretrained", "lite0"):
        save_file(timm.create_model("wide_resnet10_1", num_classes=9).state_dict(), f"{name}.safetensors")
    torch.save({"state_dict": load_file("lite0.safetensors"), "arch": "wide_resnet10_1"}, "model_best.pth.tar")
    shrunk = [*SHRUNK, "--data.crop_size=32", "--data.validation=0.2"]
    names, commands, kinds = {}, [], {}
    for guide in ("photos", "deploy", "trust"):
        text = (ROOT / "docs" / f"{guide}.md").read_text(encoding="utf-8")
        for language, block in re.findall(r"```(sh|python)\n(.*?)```", text, re.DOTALL):
            if language == "python":
                exec(compile(block, guide, "exec"), names)
            for line in block.splitlines() if language == "sh" else ():
                words = shlex.split(line)
                assert words[0] in ("mixmo", "pip", "python") and (words[0] != "python" or (ROOT / words[1]).is_file())
                if words[:2] == ["mixmo", "fit"]:
                    words += shrunk
                    words += [] if "--model.pretrained" in words else ["--model.pretrained=pretrained.safetensors"]
                if words[0] == "mixmo":
                    assert main(words[1:]) == 0, line
                    commands.append(line)
                    kinds[words[1]] = kinds.get(words[1], 0) + 1
    capsys.readouterr()
    assert kinds.keys() == {"fit", "test", "compare", "predict", "export"} and len(commands) >= 15
    assert names["net"].num_members == 2
    assert names["predictions"].classes == ["cat", "dog", "emu"]
    expected = Predictor("whole.onnx")(["new.jpg"]).probabilities[0]
    np.testing.assert_allclose(names["probabilities"], expected, atol=0.01)


def test_the_notebook_runs():
    """Its code runs with one epoch of training; its saved pictures are present."""
    cells = json.loads((ROOT / "docs" / "method.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {}
    with matplotlib.rc_context({"backend": "agg"}):
        for block in code:
            exec(compile(block.replace("epochs=60", "epochs=1"), "method.ipynb", "exec"), names)
    assert names["members"].shape == (1597, 2, 10) and names["difference"] < 1e-4 and len(names["losses"]) == 8
    kept = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert sum("image/png" in output["data"] for output in kept) == 4 and all("data" in output for output in kept)


def test_the_recipe_of_ones_own_runs(tmp_path, monkeypatch):
    write_images(tmp_path / "data" / "flowers" / "train", size=40, count=20)
    write_images(tmp_path / "data" / "flowers" / "val", size=40)
    monkeypatch.chdir(tmp_path)
    (recipe,) = (block for block in blocks("yaml", COMMAND_LINE) if "sweep:" not in block)
    Path("own.yaml").write_text(recipe)
    assert main(["fit", "own.yaml", *SHRUNK]) == 0
    assert Path("runs/own/config.yaml").is_file()


@pytest.mark.parametrize("target", re.findall(r"`?make (\w+)", README + COMMAND_LINE))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_kind_of_mask_is_described():
    assert all(f"`{kind}`" in MASKS for kind in KINDS)


@pytest.mark.parametrize(
    "file", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", *(f"docs/{f.name}" for f in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(file):
    path = ROOT / file
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (path.parent / link).exists(), link


def test_the_house_has_a_line_for_each_layer():
    """In the order that import-linter checks; every module's docstring starts with a one-line summary."""
    house = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Layers and imports")[2]
    lines = house.split("```")[1].strip().splitlines()
    shown = [re.split(r", ", re.split(r"\s{2,}", line)[0]) for line in lines]
    (layers,) = re.findall(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    wanted = [layer.split(" : ") for layer in re.findall(r'"(.*?)"', layers)]
    assert shown == wanted[1:] and wanted[0] == ["__main__"]
    assert len(lines) <= 30 and all(len(re.split(r"\s{2,}", line)) == 2 for line in lines)
    for module in (ROOT / "src" / "mixmo").rglob("*.py"):
        first = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))).splitlines()[0]
        assert first.endswith(".") and len(first) < 118, module


@pytest.mark.parametrize("file", ["README.md", *(f"docs/{f.name}" for f in (ROOT / "docs").glob("*.md"))])
def test_tables_of_studies_are_those_of_their_rows(file):
    """As ``python benchmarks/study_tables.py --update`` writes them from benchmarks/results."""
    text = (ROOT / file).read_text(encoding="utf-8")
    tables = importlib.import_module("study_tables")
    assert tables.renewed(text) == text
    assert len(tables.MARK.findall(text)) == len(re.findall("<!-- (study|brief|short|overview|chosen|diagnosis)", text))


def test_there_are_tables_of_studies():
    """So that the test above is not vacuous, and notices a changed figure."""
    tables = importlib.import_module("study_tables")
    (found, *_) = tables.MARK.finditer(README)
    changed = README.replace(found[6], found[6].replace("0", "1", 1))
    assert changed != README and tables.renewed(changed) == README
