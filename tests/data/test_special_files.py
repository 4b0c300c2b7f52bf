"""Pipes and devices are never waited for, wherever a name of one stands: one sentence says what it is."""

import io
import logging
import os
import stat
import subprocess
import sys
import tarfile
import zipfile

import pytest
from conftest import tree
from PIL import Image

import mixmo
from mixmo.data import sources
from mixmo.data.datasets import open_source
from mixmo.errors import InputError
from mixmo.files import check_regular

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
SECONDS = 60


def answered(*words):
    """Return what a command says, which has to end by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "mixmo", *map(str, words)], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_what_is_no_regular_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), ("/dev/zero", "a device"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=f"it is {kind}, not a regular file"):
            check_regular(path)
    with pytest.raises(FileNotFoundError):
        check_regular(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pipe.png", "/dev/zero", "link.png"])
def test_a_table_that_names_a_pipe_or_a_device_is_refused_at_once(tmp_path, name):
    tree(tmp_path, "a.png", "b.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "data.csv").write_text(f"path,label\na.png,cat\nb.png,dog\n{name},dog\n")
    said = answered("fit", "digits-cut", "--data.name", f"csv:{tmp_path}/data.csv", "--run", tmp_path / "run")
    kind = "a device" if name == "/dev/zero" else "a pipe"
    assert f"data.csv, line 4, names {name}: it is {kind}, not a regular file." in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_shards_and_lists_of_classes_that_are_pipes_are_not_opened(tmp_path, kind):
    pytest.importorskip("pyarrow")
    tree(tmp_path, "x.png")
    os.mkfifo(tmp_path / ("train.tar" if kind == "webdataset" else "train.parquet"))
    assert "there are no" in answered("fit", "digits-cut", "--data.name", f"{kind}:{tmp_path}", "--run", tmp_path / "r")
    if kind == "parquet":
        return
    os.remove(tmp_path / "train.tar")
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(tmp_path / "x.png", "x.png")
        label = tarfile.TarInfo("x.cls")
        label.size = 1
        tar.addfile(label, io.BytesIO(b"0"))
    os.mkfifo(tmp_path / "classes.txt")
    said = answered("fit", "digits-cut", "--data.name", f"{kind}:{tmp_path}", "--run", tmp_path / "r")
    assert "classes.txt cannot be read: it is a pipe" in said


@pytest.mark.slow
def test_corrupted_images_that_are_pipes_are_not_opened(trained, tmp_path):
    _, run, _ = trained
    (tmp_path / "c").mkdir()
    for name in ("labels", "fog"):
        os.mkfifo(tmp_path / "c" / f"{name}.npy")
    said = answered("test", run.path, "--corruptions", tmp_path / "c")
    assert "labels.npy cannot be read as an .npy file: it is a pipe" in said


def test_links_in_zip_files_are_left_out_as_in_tar_files(tmp_path, caplog):
    tree(tmp_path, "cat/a.png", "dog/b.png")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name in ("cat/a.png", "dog/b.png"):
            archive.write(tmp_path / name, name)
        link = zipfile.ZipInfo("cat/link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    source = open_source(f"folder:{tmp_path}/data.zip", "all")
    assert [source.name(index).rpartition("/")[2] for index in range(len(source))] == ["a.png", "b.png"]
    assert "left out 1 that are no images" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "webdataset"])
def test_a_long_listing_is_told_of(tmp_path, kind, monkeypatch, caplog):
    """Nothing is said of short ones."""
    names = [f"{number % 2}/{number:03}.png" for number in range(300)]
    tree(tmp_path / "data" / "train", *names)
    name = f"folder:{tmp_path}/data"
    if kind == "zip":
        name = f"folder:{tmp_path}/data.zip"
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for each in names:
                archive.write(tmp_path / "data" / "train" / each, f"train/{each}")
            archive.write(tmp_path / "data" / "train" / names[0], f"test/{names[0]}")
    elif kind != "folder":
        (tmp_path / "tars").mkdir()
        with tarfile.open(tmp_path / "tars" / "train.tar", "w") as tar:
            for number, each in enumerate(names):
                tar.add(tmp_path / "data" / "train" / each, each if kind == "tar" else f"{number}.png")
                label = tarfile.TarInfo(f"{number}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(str(number % 2).encode())) if kind != "tar" else None
        name = f"{'folder' if kind == 'tar' else kind}:{tmp_path}/tars"
    with caplog.at_level(logging.WARNING, "mixmo"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
        open_source(name, "train")
        assert "entries so far" not in caplog.text
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))  # shards are listed once
        monkeypatch.setattr(sources, "PATIENCE", -1.0)
        open_source(name, "train")
    assert f"still listing {tmp_path}" in caplog.text and "256 entries so far" in caplog.text


def test_workers_are_bounded_in_python_too(gone):
    with pytest.raises(InputError, match="workers is 1000000; it lies between 0 and 256"):
        mixmo.Predictor(gone)([Image.new("RGB", (8, 8))], workers=1_000_000)
