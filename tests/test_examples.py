"""Examples with other trainers: each is run for fewer epochs, to an accuracy that shows that it learns."""

import re
from pathlib import Path

import pytest
from test_package import run

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORTER = {
    "with_lightning.py": ("EPOCHS, REPETITION = 20, 2", "EPOCHS, REPETITION = 3, 2", r"'val_accuracy': ([\d.]+)", 0.5),
    "with_timm.py": ("EPOCHS, REPETITION = 20, 2", "EPOCHS, REPETITION = 3, 2", r"weights: ([\d.]+) %", 50),
    "with_transformers.py": (
        "EPOCHS, REPETITION = 20, 2", "EPOCHS, REPETITION = 3, 2", r"'eval_accuracy': '?([\d.]+)", 0.5,
    ),
    "with_ray.py": ("EPOCHS, SAMPLES = 12, 6", "EPOCHS, SAMPLES = 4, 2", r"on test images: ([\d.]+)", 0.12),
    "own_dataset.py": ("epochs=40", "epochs=4", r"accuracy ([\d.]+)", 0.4),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORTER)
def test_an_example_learns(name, tmp_path, run_here):
    if name == "with_transformers.py":
        pytest.importorskip("transformers", reason="transformers is not installed")
        pytest.importorskip("accelerate", reason="accelerate is not installed")
    if name == "with_ray.py":
        pytest.importorskip("ray.tune", reason="Ray Tune is not installed")
    old, new, pattern, least = SHORTER[name]
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert old in text and len(text.splitlines()) < 60
    (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
    printed = run(name, cwd=tmp_path) if name == "with_ray.py" else run_here(name)  # Ray starts processes
    assert float(re.findall(pattern, printed)[-1]) > least
