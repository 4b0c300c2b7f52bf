"""The wheel, the quickstart and the benchmarks."""

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
import timm
import torch
from conftest import write_images
from sklearn.datasets import load_digits

from mixmo.cli.main import main
from mixmo.evaluation.results import evaluate_predictions
from mixmo.runs import RunFolder

ROOT = Path(__file__).parents[1]
TINY = ["--trainer.max_epochs=1", "--data.batch_size=8", "--trainer.limit_train_batches=2"]


def run(*words, cwd, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_carries_the_recipes_and_imports_alone(tmp_path):
    pytest.importorskip("setuptools", "77")
    source = tmp_path / "source"  # building leaves files next to the package
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, "--quiet"]
    run(*build, cwd=tmp_path)
    (wheel,) = tmp_path.glob("mixmo-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    data = {"py.typed", "config/recipes/bases.yaml", "config/recipes/catalogue.yaml", "reporting/templates/page.html",
            "reporting/templates/style.css"}  # fmt: skip
    assert {f"mixmo/{file}" for file in data} <= set(names)
    assert "mixmo_command.py" in names and not [name for name in names if name.startswith("tests")]
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


@pytest.mark.slow
def test_the_quickstart_ends_with_its_table(tmp_path, run_here):
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)  # what is there already is left alone
    words = ["epochs=1", "limit_train_batches=2", "model=wide_resnet10_1"]
    out = run_here(ROOT / "examples" / "quickstart.py", *words)
    table = out[out.index("20 digits of each class, 1597 test images") :]
    macs = {}
    for row in ("single network", "single network + CutMix", "Cut-MixMo", "two single networks"):
        (line,) = re.findall(rf"│ {re.escape(row)} +│(.*)│", table)
        macs[row] = float(line.split("│")[4])
    assert macs["Cut-MixMo"] == macs["single network"] == macs["two single networks"] / 2
    assert re.search(
        r"^single network classifies .*; Cut-MixMo .* NLL \(log loss\) of .* Both cost", table, re.MULTILINE
    )
    assert "runs/quickstart-comparison/comparison.html" in table and "network: runs/quickstart-2\n" in table
    assert (tmp_path / "runs" / "quickstart-comparison" / "comparison.html").is_file()
    assert len(RunFolder(tmp_path / "runs" / "quickstart-2").read_metrics()) == 1
    assert not list((tmp_path / "runs" / "quickstart").iterdir())


@pytest.mark.slow
def test_the_plain_loop_learns_what_it_says(tmp_path, run_here):
    """Two fifths of its epochs reach 97.2 %, which wrong targets, or the first digits of each class, do not."""
    text = (ROOT / "examples" / "plain_pytorch.py").read_text(encoding="utf-8")
    shorter = text.replace("EPOCHS, REPETITION = 100, 2", "EPOCHS, REPETITION = 40, 2")
    assert shorter != text
    (tmp_path / "shorter.py").write_text(shorter, encoding="utf-8")
    found = dict(re.findall(r"([\w/]+) ([\d.]+)", run_here("shorter.py")))
    assert float(found["accuracy"]) > 0.96 and float(found["nll"]) < 0.2
    weights = torch.load(tmp_path / "digits.pt", weights_only=True)
    plain = timm.create_model("wide_resnet10_2", num_classes=10, in_chans=1)
    plain.load_state_dict(weights)
    digits = load_digits()
    with torch.no_grad():
        answers = plain.eval()(torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32)).argmax(1).numpy()
    assert (answers == digits.target).mean() > 0.96


@pytest.mark.slow
def test_the_loop_with_averaged_weights_trains(tmp_path, run_here):
    """A quarter of its epochs."""
    text = (ROOT / "examples" / "plain_pytorch_ema.py").read_text(encoding="utf-8")
    shorter = text.replace("EPOCHS, REPETITION = 80, 2", "EPOCHS, REPETITION = 20, 2")
    assert shorter != text and len(text.splitlines()) < 60
    (tmp_path / "shorter.py").write_text(shorter, encoding="utf-8")
    printed = run_here("shorter.py")
    assert float(re.search(r"accuracy ([\d.]+)", printed)[1]) > 0.85
    assert (tmp_path / "digits-ema.pt").is_file()


@pytest.mark.slow
def test_another_librarys_ensembles_are_evaluated(tmp_path, run_here):
    """The example's files can be read, and hold its networks' predictions."""
    pytest.importorskip("torch_uncertainty")
    run_here(ROOT / "examples" / "other_libraries.py", "--epochs=2")
    for name in ("packed", "batch-ensemble"):
        found = evaluate_predictions(tmp_path / "theirs" / f"{name}.npz")
        assert found.predictions.logits.shape == (360, 4, 10)
        assert found.metrics.average["accuracy"] > 0.3 and found.metrics.diversity["disagreement"] > 0


@pytest.mark.slow
def test_the_gpu_script_runs(tmp_path, monkeypatch, capsys, traced):
    """Everything once on this machine's device, with small sizes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu = importlib.import_module("gpu")
    measure = gpu.measure
    monkeypatch.setattr(gpu, "measure", lambda call, device, seconds=0: measure(call, device, 0))
    sizes = ["--backbone=wide_resnet10_1", "--batches=2", "--matmul=64", "--recipe=quickstart"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out=out", *sizes, "--", *TINY])
    gpu.main()
    assert "ensemble, logit average" in capsys.readouterr().out
    tables = json.loads((tmp_path / "out" / "gpu.json").read_text())["tables"]
    assert tables["ceilings"] and tables["training steps"]["batch 2, compiled"]["ms"] > 0
    assert (tmp_path / "out" / "run" / "test.json").is_file()


@pytest.mark.slow
def test_every_form_of_a_network_is_measured(tmp_path, run_here):
    """Accuracy is the same in all."""
    pytest.importorskip("onnxruntime")
    write_images(tmp_path / "photos", count=12, size=16)
    words = [
        f"--data.name=folder:{tmp_path}/photos",
        "--data.channels=3",
        "--data.batch_size=8",
        f"--run={tmp_path}/run",
    ]
    assert main(["fit", "digits-cut", *words, "--trainer.max_epochs=1"]) == 0
    run_here(ROOT / "benchmarks" / "deployment.py", "run", "--rounds=2", "--images=photos", "--save=kept.json")
    tables = json.loads((tmp_path / "kept.json").read_text())["tables"]
    forms = tables["forms, ratios to the plain backbone"]
    assert {forms[name]["accuracy"] for name in forms if name != "plain backbone"} == {forms["fused"]["accuracy"]}
    assert tables["mixmo predict"]["0 workers"]["images"] == 36


def test_what_limits_many_gpus_is_worked_out_as_docs_say(monkeypatch):
    """All columns except the cores for decoding, which are measured."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    scaling = importlib.import_module("scaling")
    monkeypatch.setattr(scaling, "decoded_a_second", lambda size: 500.0)
    rows = scaling.rows(scaling.parser().parse_args([]))
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    table = text.partition(scaling.MARKER)[2].partition(scaling.END)[0].strip()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    cores = lines[0].index("CPU cores per GPU")
    assert [row[:cores] + row[cores + 1 :] for row in lines[2:]] == [row[:cores] + row[cores + 1 :] for row in rows]
    by_hand = 2 * 511 / 512 * 4 * (36.5e6 + 2 * 640 * 21_841) / 1e9  # a ring's bytes, of the network and two heads
    assert float(rows[2][lines[0].index("gradients, GB")]) == pytest.approx(by_hand, rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads the memory of processes from Linux")
def test_streaming_is_measured(monkeypatch, run_here):
    monkeypatch.setenv("HF_DATASETS_CACHE", os.environ["HF_DATASETS_CACHE"])  # which the program sets
    printed = run_here(ROOT / "benchmarks" / "streaming.py", "--images=3000", "--workers=1")
    rows = [line.split(",") for line in printed.partition("images,seconds,MiB\n")[2].splitlines()[:-1]]
    assert [int(row[0]) for row in rows][-1] == 2816 and all(float(row[2]) > 50 for row in rows)
    assert "2816 images shown" in printed


def test_kept_results_say_where_they_were_measured():
    files = list((ROOT / "benchmarks" / "results").glob("*.json"))
    assert len(files) >= 2
    for file in files:
        content = json.loads(file.read_text())
        assert content["environment"]["packages"]["torch"] and content["environment"]["processor"]
        assert content["about"] and all(content["tables"].values())
