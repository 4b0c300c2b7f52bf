"""The wheel, the quickstart and the benchmarks."""

import csv
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from mixmo.evaluation.results import evaluate_predictions
from mixmo.runs import Run

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
TINY = ["--trainer.max_epochs=1", "--data.batch_size=8", "--trainer.limit_train_batches=2"]


def run(*words, cwd, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_carries_the_recipes_and_imports_alone(tmp_path):
    pytest.importorskip("setuptools", "77")
    source = tmp_path / "source"  # building leaves files beside what it builds
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, "--quiet"]
    run(*build, cwd=tmp_path)
    (wheel,) = tmp_path.glob("mixmo-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    data = {"py.typed", "config/recipes/bases.yaml", "config/recipes/catalogue.yaml", "reporting/templates/base.html",
            "reporting/templates/style.css"}  # fmt: skip
    assert {f"mixmo/{file}" for file in data} <= set(names)
    assert not [name for name in names if name.startswith("tests")]
    assert {f"mixmo/{file.relative_to(ROOT / 'src/mixmo')}" for file in (ROOT / "src/mixmo").rglob("*.py")} <= set(
        names
    )
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = "import mixmo, mixmo.config.recipes as r; print(mixmo.__file__); print(len(r.catalogue()))"
    where, count = run("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "installed")).split()
    assert Path(where).is_relative_to(tmp_path) and int(count) > 40


def test_versions_agree():
    import mixmo

    assert f'version = "{mixmo.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {mixmo.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_the_quickstart_ends_with_its_table(tmp_path):
    words = [ROOT / "examples" / "quickstart.py", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    words += ["--model.backbone=wide_resnet10_1"]
    for suffix in ("", "-2"):  # a second one overwrites nothing
        out = run(*words, cwd=tmp_path)
        table = out[out.index("20 digits of each class, 1597 test images") :]
        macs = {}
        for row in ("single network", "single network + CutMix", "Cut-MixMo", "two single networks"):
            (line,) = re.findall(rf"│ {re.escape(row)} +│(.*)│", table)
            macs[row] = float(line.split("│")[4])
        assert macs["Cut-MixMo"] == macs["single network"] == macs["two single networks"] / 2
        assert re.search(r"^(Cut-MixMo|single network) classifies .* Its NLL is .* Both cost", table, re.MULTILINE)
        assert f"runs/quickstart-comparison{suffix}/comparison.html" in table and f"runs/quickstart{suffix}" in table
        assert (tmp_path / f"runs/quickstart-comparison{suffix}" / "comparison.html").is_file()
        assert len(Run(tmp_path / f"runs/quickstart{suffix}").read_metrics()) == 1


STUDY = """
seeds: [0, 1]
settings: {extends: [digits], model: {backbone: wide_resnet10_1}, data: {validation: 0.0, images_per_class: 10}}
tasks:
  few: {passes: 2}
  fewer: {passes: 2, methods: [single], data: {images_per_class: 5}}
methods:
  single: {extends: [single]}
  cut: {extends: [cut, b2], data: {input_repetition: 0.5}}
  two: {extends: [single], networks: 2}
  two halves: {extends: [single], networks: 2, passes: 0.5}
"""


def test_a_study_makes_each_row_once(tmp_path):
    """A row for every task, method and seed; two networks are averaged and cost twice, or half the passes each."""
    (tmp_path / "study.yaml").write_text(STUDY)
    words = [ROOT / "benchmarks" / "study.py", "study.yaml", "--out=rows.csv", "--jobs=1"]
    assert "10 rows to make, of 12 networks" in run(*words, cwd=tmp_path)
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = {(row["task"], row["method"], row["seed"]): row for row in csv.DictReader(file)}
    assert len(rows) == 10 and {seed for *_, seed in rows} == {"0", "1"}
    cost = {method: float(rows["few", method, "0"]["images_in_training"]) for method in ("single", "cut", "two")}
    assert cost["two"] == 2 * cost["single"] == 2 * cost["cut"] > 0
    assert float(rows["few", "two halves", "0"]["images_in_training"]) == cost["single"]
    single, two = (float(rows["few", method, "0"]["macs"]) for method in ("single", "two"))
    assert two == 2 * single
    assert rows["few", "single", "0"]["nll"] != rows["few", "single", "1"]["nll"]
    assert (rows["few", "single", "0"]["test_images"], rows["fewer", "single", "0"]["test_images"]) == ("1697", "1747")
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    (tmp_path / "rows.csv").write_text("\n".join(lines[:-1]) + "\n")  # stopped before the last row
    assert "1 rows to make, of 1 networks" in run(*words, cwd=tmp_path)
    assert sorted((tmp_path / "rows.csv").read_text().splitlines()) == sorted(lines)


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_studies_are_of_equal_compute(file, tmp_path):
    """A row's networks see the task's passes, all told, or twice where that is said; a step of SAM counts twice."""
    study = importlib.import_module("study")
    content = yaml.safe_load(file.read_text())
    content["seeds"] = content["seeds"][:1]
    rows = list(study.rows_of(content, tmp_path, {}))
    assert len(rows) >= 4
    for row in rows:
        if row.about["method"].startswith("start of"):
            continue
        passes = 0
        for plan in (*row.starts, *row.plans):
            steps = 2 if plan.settings.optimizer.sam_radius else 1
            passes += steps * plan.trainer["max_epochs"] * plan.settings.data.batch_repetition
            assert plan.settings.data.split_seed == 0
        twice = "two networks" in row.about["method"] and "equal" not in row.about["method"]
        assert 0.95 <= passes / row.about["passes"] / (2 if twice else 1) <= 1, row.about
        assert len({plan.settings.seed for plan in row.plans}) == len(row.plans)


def test_another_librarys_ensembles_are_evaluated(tmp_path):
    """The example's files are read, and hold what its networks predict."""
    pytest.importorskip("torch_uncertainty")
    run(ROOT / "examples" / "other_libraries.py", "--epochs=2", cwd=tmp_path)
    for name in ("packed", "batch-ensemble"):
        found = evaluate_predictions(tmp_path / "theirs" / f"{name}.npz")
        assert found.predictions.logits.shape == (360, 4, 10)
        assert found.metrics.average["accuracy"] > 0.3 and found.metrics.diversity["disagreement"] > 0


def test_the_gpu_script_runs(tmp_path):
    """On this machine's device, with sizes to match: everything once."""
    sizes = ["--backbone=wide_resnet10_1", "--batches=2", "--matmul=64", "--recipe=quickstart"]
    out = run(ROOT / "benchmarks" / "gpu.py", "--out=out", *sizes, "--", *TINY, cwd=tmp_path)
    assert "compiled" in out and "ensemble, logit average" in out
    assert json.loads((tmp_path / "out" / "gpu.json").read_text())["tables"]["ceilings"]
    assert (tmp_path / "out" / "run" / "test.json").is_file()


def test_kept_results_say_where_they_were_measured():
    files = list((ROOT / "benchmarks" / "results").glob("*.json"))
    assert len(files) >= 2
    for file in files:
        content = json.loads(file.read_text())
        assert content["environment"]["packages"]["torch"] and content["environment"]["processor"]
        assert content["about"] and all(content["tables"].values())
