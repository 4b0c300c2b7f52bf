"""Pipes and devices are never opened, wherever they are named: one message says what they are."""

import io
import logging
import os
import shutil
import tarfile
from contextlib import redirect_stderr
from functools import partial

import pytest
from conftest import open_source, write_tree
from killing import run_in_fork
from PIL import Image

import mixmo
from mixmo.cli.main import main
from mixmo.data import messages
from mixmo.errors import InputError
from mixmo.files import check_regular

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
SECONDS = 60


@pytest.fixture
def run_cli(tmp_path):
    """Runs a command in a fork, which is killed if it blocks, and returns its error message."""
    file = tmp_path / "said.txt"

    def work(words):
        with file.open("w") as said, redirect_stderr(said):
            assert main([*map(str, words)]) == 2

    def answer(*words):
        assert run_in_fork(partial(work, words), SECONDS)
        return file.read_text()

    return answer


def test_what_is_no_regular_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), ("/dev/zero", "a device"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=f"it is {kind}, not a regular file"):
            check_regular(path)
    with pytest.raises(FileNotFoundError):
        check_regular(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["pipe.png", "/dev/zero", "link.png"])
def test_a_table_that_names_a_pipe_or_a_device_is_refused_at_once(tmp_path, run_cli, name):
    write_tree(tmp_path, "a.png", "b.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "data.csv").write_text(f"path,label\na.png,cat\nb.png,dog\n{name},dog\n")
    said = run_cli("fit", "digits-cut", "--data.name", f"csv:{tmp_path}/data.csv", "--run", tmp_path / "run")
    kind = "a device" if name == "/dev/zero" else "a pipe"
    assert f"data.csv, line 4, names {name}: it is {kind}, not a regular file." in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_shards_and_lists_of_classes_that_are_pipes_are_not_opened(tmp_path, run_cli, kind):
    pytest.importorskip("datasets")
    write_tree(tmp_path, "x.png")
    os.mkfifo(tmp_path / ("train.tar" if kind == "webdataset" else "train.parquet"))
    assert "there are no" in run_cli("fit", "digits-cut", "--data.name", f"{kind}:{tmp_path}", "--run", tmp_path / "r")
    if kind == "parquet":
        return
    os.remove(tmp_path / "train.tar")
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(tmp_path / "x.png", "x.png")
        label = tarfile.TarInfo("x.cls")
        label.size = 1
        tar.addfile(label, io.BytesIO(b"0"))
    shutil.copy(tmp_path / "train.tar", tmp_path / "test.tar")
    os.mkfifo(tmp_path / "classes.txt")
    said = run_cli("fit", "digits-cut", "--data.name", f"{kind}:{tmp_path}", "--run", tmp_path / "r")
    assert "classes.txt cannot be read: it is a pipe" in said


def test_corrupted_images_that_are_pipes_are_not_opened(trained, tmp_path, run_cli):
    _, run, _ = trained
    (tmp_path / "c").mkdir()
    for name in ("labels", "fog"):
        os.mkfifo(tmp_path / "c" / f"{name}.npy")
    said = run_cli("test", run.path, "--corruptions", tmp_path / "c")
    assert "labels.npy cannot be read as an .npy file: it is a pipe" in said


def test_a_long_listing_is_told_of(tmp_path, monkeypatch, caplog):
    """Short ones print nothing."""
    write_tree(tmp_path / "train", *(f"{number % 2}/{number:03}.png" for number in range(300)))
    with caplog.at_level(logging.WARNING, "mixmo"):
        open_source(f"folder:{tmp_path}", "train")
        assert "entries so far" not in caplog.text
        monkeypatch.setattr(messages, "PROGRESS_DELAY", -1.0)
        open_source(f"folder:{tmp_path}", "train")
    assert f"still listing {tmp_path}" in caplog.text and "256 entries so far" in caplog.text


def test_workers_are_bounded_in_python_too(gone):
    with pytest.raises(InputError, match="workers is 1000000; it lies between 0 and 256"):
        mixmo.Predictor(gone)([Image.new("RGB", (8, 8))], workers=1_000_000)
