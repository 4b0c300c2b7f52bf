"""``mixmo predict``: rows as comma-separated values, JSON lines and Parquet, and images that cannot be read."""

import csv
import io
import json
import sys
from types import SimpleNamespace

import pytest

import mixmo
from mixmo.cli.main import main


def test_the_forms_hold_the_same(gone, new_images, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    for suffix in ("csv", "jsonl", "parquet"):
        assert (
            main(["predict", str(gone), str(new_images), "--out", str(tmp_path / f"a.{suffix}"), "--batch_size=5"]) == 0
        )
    assert "a.parquet, 12 images" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row | {"top5": dict(row["top5"])} for row in rows] == lines and len(lines) == 12
    with (tmp_path / "a.csv").open(newline="") as file:
        texts = list(csv.DictReader(file))
    assert capsys.readouterr().err == ""
    main(["predict", str(gone), str(new_images)])
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out))) == texts
    found = mixmo.Predictor(gone)(sorted(new_images.iterdir()))
    for text, line, row in zip(texts, lines, found.rows(), strict=True):
        assert line == row and list(line) == list(text)
        assert float(text["confidence"]) == line["confidence"] and text["class"] == line["class"]
        assert text["set"].split("; ") == line["set"] and text["ask"] == {True: "yes", False: "no"}[line["ask"]]
        assert list(line["top5"].values()) == sorted(line["top5"].values(), reverse=True)
    assert all(sum(line["top5"].values()) == pytest.approx(1, abs=1e-4) for line in lines)


def test_images_that_cannot_be_read_are_named_and_the_rest_is_done(gone, new_images, tmp_path, capsys):
    (tmp_path / "photos/deep/.hidden").mkdir(parents=True)
    for name in ("b.png", "deep/a.png", "deep/.hidden/c.png"):
        (tmp_path / "photos" / name).write_bytes(sorted(new_images.iterdir())[0].read_bytes())
    (tmp_path / "photos/bad.png").write_bytes(b"no image")
    (tmp_path / "photos/notes.txt").write_text("no image")
    assert main(["predict", str(gone), str(tmp_path / "photos"), "--out", str(tmp_path / "a.jsonl")]) == 1
    error = capsys.readouterr().err
    assert "1 of 3 images cannot be read" in error and "photos/bad.png: it is damaged" in error
    names = [json.loads(line)["file"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [name.removeprefix(f"{tmp_path}/photos/") for name in names] == ["b.png", "deep/a.png"]


def test_standard_input_is_an_image_or_names(gone, new_images, monkeypatch, capsys):
    files = sorted(new_images.iterdir())
    for content, count in ((files[0].read_bytes(), 1), ("\n".join(map(str, files)).encode(), 12)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        assert main(["predict", str(gone), "-"]) == 0
        assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == count
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n")))
    assert main(["predict", str(gone), "-"]) == 2
    assert "standard input holds neither an image nor names of images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "nowhere"], "there is no image or folder nowhere"),
        (["{run}", "{empty}"], "holds no images"),
        (["nowhere", "{images}"], "there is no run folder nowhere"),
        (["{run}", "{images}", "--out=a.txt"], "answers are written as .csv, .jsonl or .parquet"),
        (["{run}", "{images}", "--out=none/a.csv"], "none/a.csv cannot be written"),
        (["{run}", "{images}", "--batch_size=0"], "--batch_size is 0; it is 1 or more"),
        (["{run}", "{images}", "--coverage=2"], "coverage is 2.0; it is a share between 0 and 1"),
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


def test_parquet_needs_its_library_before_anything_is_predicted(gone, new_images, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["predict", str(gone), str(new_images), f"--out={tmp_path}/a.parquet"]) == 2
    assert "needs pyarrow; `pip install 'mixmo[parquet]'` installs it" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_names_are_no_formulas(gone, new_images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "=1+1.png").write_bytes(sorted(new_images.iterdir())[0].read_bytes())
    assert main(["predict", str(gone), "=1+1.png"]) == 0
    assert "'=1+1.png" in capsys.readouterr().out
