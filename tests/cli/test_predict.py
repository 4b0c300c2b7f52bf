"""``mixmo predict``: rows as comma-separated values, JSON lines and Parquet, and images that cannot be read."""

import csv
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mixmo
from mixmo.cli.main import main


def test_the_forms_hold_the_same(gone, new_images, tmp_path, capsys):
    for suffix in ("csv", "jsonl"):
        assert (
            main(["predict", str(gone), str(new_images), "--out", str(tmp_path / f"a.{suffix}"), "--batch_size=5"]) == 0
        )
    assert "a.jsonl, 12 images" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    with (tmp_path / "a.csv").open(newline="") as file:
        texts = list(csv.DictReader(file))
    assert capsys.readouterr().err == ""
    main(["predict", str(gone), str(new_images)])
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out))) == texts
    found = mixmo.Predictor(gone)(sorted(new_images.iterdir()))
    for text, line, row in zip(texts, lines, found.rows(), strict=True):
        assert line == row and list(line) == list(text)
        assert float(text["confidence"]) == line["confidence"] and text["class"] == line["class"]
        assert text["set"].split("; ") == line["set"] and text["defer"] == {True: "yes", False: "no"}[line["defer"]]
        assert list(line["top5"].values()) == sorted(line["top5"].values(), reverse=True)
    assert all(sum(line["top5"].values()) == pytest.approx(1, abs=1e-4) for line in lines)


def test_arrays_have_all_classes_and_features(gone, new_images, tmp_path):
    out = tmp_path / "a.npz"
    words = ["--features", "--sets=raps", "--batch_size=5", "--out", str(out)]
    assert main(["predict", str(gone), str(new_images), *words]) == 0
    found = mixmo.Predictor(gone, features=True, sets="raps")(sorted(new_images.iterdir()))
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["names"].tolist() == found.names and arrays["classes"].tolist() == found.classes
        for name in ("probabilities", "logits", "features", "confidence", "epistemic"):
            np.testing.assert_allclose(arrays[name], getattr(found, name), rtol=1e-4, atol=1e-5)
        assert (arrays["sets"] == found.sets.numpy()).all() and (arrays["labels"] == found.labels.numpy()).all()


def test_a_terminal_gets_a_table(gone, new_images, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["predict", str(gone), str(new_images)]) == 0
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    found = mixmo.Predictor(gone)(sorted(new_images.iterdir()))
    assert max(map(len, lines)) <= 100 and "--coverage" in "".join(lines)
    numbers = [row[2] for row in rows if row[2]]  # long names continue on a separate line
    assert numbers == [f"{100 * value:.1f} %" for value in found.confidence.tolist()]


def test_images_that_cannot_be_read_are_named_and_the_rest_is_done(gone, new_images, tmp_path, capsys):
    (tmp_path / "photos/deep/.hidden").mkdir(parents=True)
    for name in ("b.png", "deep/a.png", "deep/.hidden/c.png"):
        (tmp_path / "photos" / name).write_bytes(sorted(new_images.iterdir())[0].read_bytes())
    (tmp_path / "photos/bad.png").write_bytes(b"no image")
    (tmp_path / "photos/notes.txt").write_text("no image")
    (tmp_path / "photos/broken.png").symlink_to("nowhere.png")
    assert main(["predict", str(gone), str(tmp_path / "photos"), "--out", str(tmp_path / "a.jsonl")]) == 1
    error = capsys.readouterr().err
    assert "2 of 4 images cannot be read" in error and "photos/bad.png: it is damaged" in error
    assert "photos/broken.png: " in error
    names = [json.loads(line)["file"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [name.removeprefix(f"{tmp_path}/photos/") for name in names] == ["b.png", "deep/a.png"]


def test_pipes_are_never_opened(gone, new_images, tmp_path, capsys):
    """Nothing writes to them, so reading would block forever."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(sorted(new_images.iterdir())[0].read_bytes())
    os.mkfifo(tmp_path / "photos/pipe.png")
    os.mkfifo(tmp_path / "photos/pipe")
    assert main(["predict", str(gone), str(tmp_path / "photos")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["predict", str(gone), str(tmp_path / "photos/a.png"), str(tmp_path / "photos/pipe.png")]) == 1
    assert "photos/pipe.png: it is a pipe, not a regular file" in capsys.readouterr().err


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200),
    start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"PK\x03\x04", b"GIF89a"]),
    name=st.sampled_from(["a.png", "a.zip", "a.csv", "a.onnx", "a"]),
)
def test_any_content_is_an_unreadable_file_or_one_sentence(gone, content, start, name):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(start + content)
        assert main(["predict", str(gone), str(file)]) in (0, 1)
        assert main(["predict", str(file), str(file)]) == 2
        for dataset in (f"folder:{file}", f"csv:{file}", f"folder:{folder}"):
            assert main(["preview", "digits-cut", f"--data.name={dataset}", f"--out={folder}/out"]) == 2


def test_standard_input_is_an_image_or_names(gone, new_images, monkeypatch, capsys):
    files = sorted(new_images.iterdir())
    for content, count in ((files[0].read_bytes(), 1), ("\n".join(map(str, files)).encode(), 12)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        assert main(["predict", str(gone), "-"]) == 0
        assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == count
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n")))
    assert main(["predict", str(gone), "-"]) == 2
    assert "standard input contains neither an image nor paths of images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "nowhere"], "there is no image or folder nowhere"),
        (["{run}", "{empty}"], "holds no images"),
        (["nowhere", "{images}"], "there is no run folder nowhere"),
        (["{run}", "{images}", "--out=a.txt"], "predictions are written as .csv, .jsonl or .npz"),
        (["{run}", "{images}", "--out=none/a.csv"], "none/a.csv cannot be written"),
        (["{run}", "{images}", "--batch_size=0"], "batch_size is 0; it must be at least 1"),
        (["{run}", "{images}", "--workers=1000000"], "workers is 1000000; it must be at most 256"),
        (["{run}", "{images}", "--coverage=2"], "coverage is 2.0; it is a share between 0 and 1"),
        (["{run}", "{images}", "--max_error_rate=0"], "max_error_rate is 0.0; it is a share between 0 and 1"),
        (["{run}", "{images}", "--features"], "--features needs an .npz file to write to; name one with --out"),
        (["{run}", "{images}", "--tta=rotate"], "unknown tta 'rotate'"),
        (["{run}", "{images}", "--sets=class"], "unknown sets 'class'"),
        (["{run}", "{images}", "--checkpoint=first"], "unknown checkpoint 'first'"),
        (["{run}", "{images}", "--precision=16"], "unknown precision '16'"),
    ],
)
def test_bad_words_are_one_sentence(gone, new_images, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"run": gone, "images": new_images, "empty": tmp_path / "empty"}
    assert main(["predict", *(word.format(**places) for word in words)]) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown and shown.count("\n") == 0
    assert [each.name for each in tmp_path.iterdir()] == ["empty"]


def test_names_are_no_formulas(gone, new_images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "=1+1.png").write_bytes(sorted(new_images.iterdir())[0].read_bytes())
    assert main(["predict", str(gone), "=1+1.png"]) == 0
    assert "'=1+1.png" in capsys.readouterr().out
