"""The command line: what it prints, and one clear message with exit code 2 for bad input."""

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_images

from mixmo.cli.main import COMMANDS, RANK_TIMEOUT, main, show_log
from mixmo.config.recipes import catalogue
from mixmo.runs import RunFolder

FAST = ["--data.batch_size=8", "--data.padding=1", "--data.image_size=null", "--data.channels=3"]
FAST += ["--trainer.max_epochs=1"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_whole_way(pictures, capsys):
    assert main(["fit", "digits-cut", f"--data.name=folder:{pictures}", *FAST, "--data.validation=0.25"]) == 0
    assert RunFolder("runs/digits-cut").config_file.is_file()
    assert "mixmo test runs/digits-cut" in capsys.readouterr().out
    assert main(["test", "runs/digits-cut"]) == 0
    out = capsys.readouterr().out
    assert "ensemble, logit average" in out and "member 1" in out and "runs/digits-cut/test.json" in out
    assert main(["test", "runs/digits-cut", "--checkpoint=best"]) == 0
    assert main(["fit", "runs/digits-cut"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main(["fit", "runs/digits-cut/config.yaml", "--run", "runs/second"]) == 0
    one, other = (
        torch.load(RunFolder(r).checkpoint_file(), weights_only=True) for r in ("runs/digits-cut", "runs/second")
    )
    assert all(torch.equal(one["state_dict"][k], other["state_dict"][k]) for k in one["state_dict"])


def test_recipes_are_listed_in_groups(capsys):
    """Names are not cut off within 100 columns; recipes to start with come first."""
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "mixmo fit quickstart" in lines[0] and max(map(len, lines)) <= 100
    rows = {cells[0]: cells for line in lines if (cells := [cell.strip() for cell in line.strip("│").split("│")])[1:]}
    assert {*catalogue()} == rows.keys() - {"recipe"}
    assert rows["cifar100-wrn28x10-cut-cutmix"][1:] == ["Cut-MixMo + CutMix", "4", "300", "85.77–85.92"]
    assert rows["quickstart"][1:] == ["Cut-MixMo", "2", "160"]
    assert any("CIFAR-100, as published · torch/cifar100, wide_resnet28_10" in line for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    """Both spellings work; the first sentence describes the command."""
    texts = []
    for words in ([command, "--help"], ["help", command]):
        assert main(words) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].lower().startswith("usage: ")
    first = next(part for part in texts[0].split("\n\n")[1:])
    assert re.match(r"[A-Z][^\n]{20,}", first) and not first.startswith(("default config", "positional"))


def test_help_of_the_program(capsys):
    assert main(["--help"]) == 0 and main(["help"]) == 0
    one, other = capsys.readouterr().out.split("usage: ")[1:]
    assert one == other and all(f"\n  {command} " in one for command in COMMANDS)
    assert max(map(len, one.splitlines())) <= 100


def test_a_closed_pipe_ends_quietly(monkeypatch, capsys):
    """Whether noticed while printing or by the last flush."""

    def printing():
        print("row\n" * 10_000)

    monkeypatch.setattr("mixmo.cli.recipes.group_recipes", printing)
    for words in (["--help"], ["recipes"]):
        reading, writing = os.pipe()
        os.close(reading)
        with monkeypatch.context() as patch, open(writing, "w") as stdout:
            patch.setattr("sys.stdout", stdout)
            assert main(words) == 141  # 128 and SIGPIPE, as a shell reports it
        assert capsys.readouterr().err == ""


def test_a_defect_is_one_line_with_the_traceback_in_a_file(monkeypatch, capsys, tmp_path):
    def broken():
        raise KeyError("a\x1b[31mb")

    monkeypatch.setattr("mixmo.cli.recipes.group_recipes", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["recipes"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mixmo: KeyError: ") and "Please report this defect" in error
    assert error.count("\n") == 1 and "\x1b" not in error
    (file,) = tmp_path.glob("mixmo-*.log")
    assert str(file) in error and "Traceback" in file.read_text() and '"torch"' in file.read_text()


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "mixmo: stopped."),
        (MemoryError(), 2, "mixmo: the memory is full; lower data.batch_size"),
        (OSError(28, "No space left on device", "a/b"), 2, "mixmo: a/b: No space left on device."),
    ],
)
def test_what_is_no_defect_has_exit_codes_of_its_own(monkeypatch, capsys, raised, code, message):
    def stopped():
        raise raised

    monkeypatch.setattr("mixmo.cli.recipes.group_recipes", stopped)
    assert main(["recipes"]) == code
    assert capsys.readouterr().err.startswith(message)


def test_notices_are_shown_and_the_log_is_left_as_it_was(capsys):
    logger = logging.getLogger("mixmo")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with show_log():
        logger.warning("two files were skipped.")
    assert capsys.readouterr().err == "mixmo: two files were skipped.\n"
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


BAD = {
    "digits-cutt": "unknown recipe 'digits-cutt'; did you mean 'digits-cut'",
    "nowhere.yaml": "there is no recipe file nowhere.yaml",
    "digits-cut --data.batch_siez=4": "unknown option '--data.batch_siez'; did you mean '--data.batch_size'",
    "digits-cut --lr=4": "unknown option '--lr'; did you mean '--optimizer.lr' or '--optimizer.base_lr'",
    "digits-cut --schedule.epochs=4": "unknown option '--schedule.epochs'; did you mean '--trainer.max_epochs'",
    "digits-cut --data.batch_size=many": "data.batch_size is 'many'; it must be an integer",
    "digits-cut --data.batch_size=0": "data.batch_size is 0",
    "digits-cut --mixer.kind=cutt": "unknown mixer.kind 'cutt'; did you mean 'cut'",
    "digits-cut --model.backbone=resnet19": "unknown backbone 'resnet19'; did you mean 'resnet",
    "digits-cut --model.backbone=crossvit_tiny_240": "2 stems",
    "digits-cut --model.num_members=0": "num_members is 0",
    "digits-cut --data.batch_repetition=5": "batch_repetition 5 does not divide batch_size 8",
    "digits-cut --data.batch_repetition=16": "batch_size 8 is smaller than batch_repetition 16",
    "digits-cut --mixer.kind=grid --model.num_members=17": "'grid' has 16 cells on a map of 8×8",
    "digits-cut --mixer.alpha=-1": "mixer.alpha is -1;",
    "digits-cut --mixer.probability=1.5": "probability is 1.5",
    "digits-cut --mixer.root=0": "root is 0",
    "digits-cut --data.input_repetition=1": "data.input_repetition is 1",
    "digits-cut --data.input_repetition_end=1": "data.input_repetition_end is 1",
    "digits-cut --data.input_repetition_end=-0.1": "data.input_repetition_end is -0.1; it must be at least 0",
    "digits-cut --data.images_per_class=0": "data.images_per_class is 0; it must be at least 1",
    "digits-cut --data.split_seed=-1": "data.split_seed is -1; it must be at least 0",
    "digits-cut --data.name=folder:nowhere": "there is no dataset folder nowhere",
    "digits-cut --data.name=cifar": "unknown dataset 'cifar'",
    "digits-cut --data.mean=[0.1,0.2]": "data.mean has 2 values for 3 channels",
    "digits-cut --data.std=[0]": "data.std[0] is 0;",
    "digits-cut --optimizer.name=sdg": "unknown optimizer 'sdg'; did you mean",
    "digits-cut --optimizer.lr=-1": "optimizer.lr is -1",
    'digits-cut --optimizer.options={"a":1}': "does not take {'a': 1}",
    "digits-cut --schedule.kind=linear": "unknown schedule.kind 'linear'; did you mean 'cosine'?",
    "digits-cut --schedule.milestones=[2]": "schedule.milestones[0] is 2;",
    "digits-cut --seed=-1": "seed is -1",
    "digits-cut --trainer.precision=bf16-mix": "unknown trainer.precision 'bf16-mix'; did you mean 'bf16-mixed'",
    "digits-cut --optimizer.ema_decay=1": "optimizer.ema_decay is 1;",
    "digits-cut --trainer.max_epochs=0": "max_epochs is 0",
    "digits-cut --trainer.plugins=x": "unknown option '--trainer.plugins'",
    "digits-cut --model.backbone=vit_tiny_patch16_224": "cannot take images of 8×8",
    "digits-cut --optimizer.lr=1e30 --schedule.warmup_steps=0": "the loss or its gradient was not finite at step",
    "digits-cut --loggers=[wandb] --schedule.warmup_steps=0": "pip install 'mixmo[wandb]'",
    "--run=x": "fit needs recipe: A recipe's name",
    "": "fit needs recipe: A recipe's name",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_to_fit_is_one_sentence(words, pictures, capsys):
    words, message = words.split(), BAD[words]
    if "wandb" in message and importlib.util.find_spec("wandb"):
        pytest.skip("Weights & Biases is installed")
    fixed = [] if not words or words[0] != "digits-cut" else [f"--data.name=folder:{pictures}", *FAST]
    assert main(["fit", *words[:1], *fixed, *words[1:]]) == 2
    assert Path("runs").exists() == ("not finite" in message)  # all else is refused before the run's folder is made
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("mixmo: ") and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tset", "x"], "unknown command 'tset'; did you mean 'test'"),
        (["test", "nowhere"], "there is no run folder nowhere."),
        (["test", "digits-cut"], "no run folder digits-cut; `mixmo fit digits-cut` trains the recipe of this name."),
        (["test", "."], "it has no config.yaml"),
        (["test"], "test needs either folders of runs"),
        (["test", ".", "--checkpiont=best"], "unknown option '--checkpiont'; did you mean '--checkpoint'"),
        (["recipes", "all"], "nrecognized arguments: all"),
    ],
)
def test_bad_input_elsewhere_is_one_sentence(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("mixmo: ") and error.count("\n") == 1 and "Traceback" not in error


def test_bad_recipe_files_are_one_sentence(tmp_path, capsys):
    for content, message in {
        "- a\n": "holds a list",
        "a: [": "is not valid YAML",
        "extends: other.yaml\n": "extends in own.yaml has the file other.yaml, but must name recipes or bases",
        "extends: [cifra]\n": "unknown base in own.yaml 'cifra'; did you mean 'cifar'",
        "model: {backbon: x}\n": "unknown setting 'model.backbon'; did you mean 'model.backbone'",
        "extends: digits-cut\nmodel: 3\n": "model is 3; it must be a section of settings",
    }.items():
        (tmp_path / "own.yaml").write_text(content)
        assert main(["fit", "own.yaml"]) == 2
        assert message in capsys.readouterr().err


def test_a_run_is_not_overwritten_or_changed_on_the_way(pictures, capsys):
    words = ["fit", "digits-cut", f"--data.name=folder:{pictures}", *FAST, "--data.validation=0"]
    assert main(words) == 0
    assert main(words) == 2
    assert "runs/digits-cut exists already" in capsys.readouterr().err
    assert main(["fit", "runs/digits-cut", "--seed=2"]) == 2
    assert "config.yaml" in capsys.readouterr().err
    assert main(["test", "runs/digits-cut", "--checkpoint=best"]) == 2
    assert "no validation set" in capsys.readouterr().err


def test_an_unreadable_image_in_a_worker_is_one_sentence(tmp_path, capsys):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test")
    (tmp_path / "train" / "dog" / "003.png").write_bytes(b"broken")
    streamed = ["--data.image_size=8", "--data.in_memory=false", "--data.workers=1", "--data.validation=0"]
    assert main(["fit", "digits-cut", f"--data.name=folder:{tmp_path}", *FAST, *streamed]) == 2
    error = capsys.readouterr().err
    assert "dog/003.png cannot be read" in error and "Traceback" not in error


@pytest.mark.slow
def test_a_benchmark_is_printed_and_kept(tmp_path, capsys, traced):
    size = ["--backbone=wide_resnet10_1", "--batch_size=4", "--image_size=16", "--num_classes=5", "--rounds=1"]
    assert main(["benchmark", *size, "--compile=true", f"--save={tmp_path}/deep/kept.json"]) == 0
    out = capsys.readouterr().out
    tables = json.loads((tmp_path / "deep" / "kept.json").read_text())["tables"]
    assert all(title in out for title in tables) and len(tables) == 2
    step = tables["training step, ratio to the single network"]
    assert step["single network"]["ratio"] == 1 and "MixMo, M = 2, compiled" in step
    assert all(row["ms"] > 0 for rows in tables.values() for row in rows.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone=wide_resnet10"], "unknown backbone 'wide_resnet10'; did you mean"),
        (["--batch_size=6", "--batch_repetition=4"], "batch_repetition 4 does not divide batch_size 6"),
        (["--rounds=0"], "rounds is 0"),
        (["--num_members=0"], "num_members is 0"),
        (["--precision=16"], "unknown precision '16'"),
        (["--bakbone=x"], "unknown option '--bakbone'; did you mean '--backbone'"),
    ],
)
def test_bad_input_to_benchmark_is_one_sentence(words, message, capsys):
    assert main(["benchmark", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("mixmo: ") and error.count("\n") == 1


@pytest.mark.slow
def test_the_installed_command():
    command = Path(sys.executable).with_name("mixmo")
    done = subprocess.run([command, "fit", "digits-cutt"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mixmo: unknown recipe")


def test_of_many_ranks_the_first_says_what_is_wrong(monkeypatch, capsys):
    """The others wait for it; a rank with a problem of its own reports it afterwards."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    for rank, expected in (("0", []), ("1", [RANK_TIMEOUT])):
        monkeypatch.setenv("RANK", rank)
        waits.clear()
        assert main(["fit", "digits-cutt"]) == 2
        assert waits == expected and "unknown recipe 'digits-cutt'" in capsys.readouterr().err
