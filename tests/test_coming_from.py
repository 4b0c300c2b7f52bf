"""The page "Coming from …": its programs run, and have the line counts of its table."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import TensorDataset

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
TITLES = "mixmo", "timm", "lightly-train", "torch-uncertainty"
KEPT = {
    "mixmo": ("runs/mine/checkpoints/best.ckpt", "runs/mine/model.onnx"),
    "timm": ("runs/timm/model_best.pth.tar", "runs/timm.onnx"),
    "lightly-train": (),
    "torch-uncertainty": ("runs/torch-uncertainty/**/*.ckpt", "runs/torch-uncertainty.onnx"),
}
"""What a program leaves behind: a checkpoint and a graph."""
SECTIONS = {title: PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0] for title in TITLES}


def parts(program):
    """Count a program's lines below each whole-line comment, without imports."""
    found, task = {}, None
    for line in program.splitlines():
        assert len(line) <= 120
        if line.startswith("# "):
            task = line[2:]
            found[task] = 0
        elif line.strip() and not line.strip().startswith("#") and not re.match(r"\s*(import|from) ", line):
            found[task] += 1
    return found


def blocks(section, fence="```python\n"):
    return re.findall(rf"^{fence}(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def table():
    """Return the cells of each row by library; a row's title ends at its first comma."""
    head, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", PAGE, re.MULTILINE)
    ]
    assert head[1:] == [*TITLES]
    return {row[0].partition(",")[0]: dict(zip(TITLES, row[1:], strict=True)) for row in rows[1:]}


def test_the_table_has_the_numbers_of_lines_of_the_programs():
    counted = {title: parts(blocks(SECTIONS[title])[0]) for title in TITLES if title != "lightly-train"}
    for task, cells in table().items():
        for title, found in counted.items():
            assert cells[title] == str(found[task]), f"{title}, {task}"
    assert all({*found} == {*table()} for found in counted.values())


def test_the_table_has_the_numbers_of_lines_of_the_documentation_of_lightly_train():
    found, cells = parts(blocks(SECTIONS["lightly-train"], "```\n")[0]), table()
    assert f": {found.pop('train on folders')})" in cells["train on a Dataset"]["lightly-train"]
    assert len(found) == 2 and all(cells[task]["lightly-train"] == str(count) for task, count in found.items())
    assert cells["own loop"]["lightly-train"].startswith("—")


@pytest.mark.slow
@pytest.mark.parametrize("title", TITLES)
def test_the_programs_run(title, tmp_path, monkeypatch):
    if title == "torch-uncertainty":
        pytest.importorskip("torch_uncertainty", reason="torch-uncertainty is not installed")
    if title != "lightly-train":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {
        name: TensorDataset(torch.randn(size, 3, 32, 32), torch.arange(size) % 3)
        for name, size in {"train": 48, "val": 24}.items()
    }
    names["new"] = torch.randn(4, 3, 32, 32)
    if title == "lightly-train":
        folders(tmp_path)
    for block in blocks(SECTIONS[title]):
        exec(compile(block, f"docs/coming-from.md, {title}", "exec"), names)
    probabilities = names["probabilities"]
    assert probabilities.shape == (1 if title == "lightly-train" else 4, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones_like(probabilities[:, 0]))
    if title == "torch-uncertainty":
        assert any(key.endswith("cls/NLL") for key in names["figures"][0])
    assert all([*tmp_path.glob(pattern)] for pattern in KEPT[title])


def folders(path):
    """Write the images and the pretrained weights that the page's call on a folder uses."""
    generator = np.random.default_rng(0)
    for split, size in {"train": 24, "val": 4}.items():
        for name in ("cat", "car", "dog"):
            (path / "my_data_dir" / split / name).mkdir(parents=True)
            for number in range(size):
                pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / "my_data_dir" / split / name / f"{number}.jpg")
    weights = path / "out" / "my_experiment" / "exported_models" / "exported_last.pt"
    weights.parent.mkdir(parents=True)
    torch.save(timm.create_model("resnet10t").state_dict(), weights)  # as lightly-train exports it
