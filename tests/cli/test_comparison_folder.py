"""``mixmo compare`` where its folder cannot be written."""

import errno
import os

import numpy as np

from mixmo.cli.main import main


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "a.npz", logits=3 * np.eye(3), targets=np.arange(3))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.csv").write_text("group,run,corruptions\n")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    assert main(["compare", str(tmp_path / "a.npz"), "--out", str(tmp_path / "out")]) == 2
    out, error = capsys.readouterr()
    assert "a.npz" in out
    assert error == f"mixmo: {tmp_path}/out/comparison.csv cannot be written: No space left on device.\n"
    assert [(file.name, file.read_text()) for file in (tmp_path / "out").iterdir()] == [
        ("comparison.csv", "group,run,corruptions\n")
    ]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", logits=3 * np.eye(3), targets=np.arange(3))
    (tmp_path / "file").write_text("")
    assert main(["compare", str(tmp_path / "a.npz"), "--out", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err == f"mixmo: {tmp_path}/file/out cannot be written: Not a directory.\n"
