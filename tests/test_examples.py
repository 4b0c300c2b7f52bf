"""Examples in trainers that people have: each is run, shorter than it stands, to an accuracy that shows it learns."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORTER = {
    "with_lightning.py": ("EPOCHS, REPETITION = 20, 2", "EPOCHS, REPETITION = 3, 2", r"'val_accuracy': ([\d.]+)", 0.5),
    "with_timm.py": ("EPOCHS, REPETITION = 20, 2", "EPOCHS, REPETITION = 3, 2", r"weights: ([\d.]+) %", 50),
    "with_transformers.py": (
        "EPOCHS, REPETITION = 20, 2", "EPOCHS, REPETITION = 3, 2", r"'eval_accuracy': '?([\d.]+)", 0.5,
    ),
    "with_ray.py": ("EPOCHS, SAMPLES = 12, 6", "EPOCHS, SAMPLES = 8, 2", r"on test images: ([\d.]+)", 0.12),
    "own_dataset.py": ("epochs=40", "epochs=4", r"accuracy ([\d.]+)", 0.4),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORTER)
def test_an_example_learns(name, tmp_path):
    if name == "with_transformers.py":
        pytest.importorskip("transformers", reason="transformers is not installed")
        pytest.importorskip("accelerate", reason="accelerate is not installed")
    if name == "with_ray.py":
        pytest.importorskip("ray.tune", reason="Ray Tune is not installed")
    old, new, pattern, least = SHORTER[name]
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert old in text and len(text.splitlines()) < 60
    (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
    done = subprocess.run([sys.executable, name], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(re.findall(pattern, done.stdout)[-1]) > least
