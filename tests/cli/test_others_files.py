"""No command overwrites files that mixmo did not write."""

import json

import pytest
from conftest import write_images

from mixmo.cli.main import main

MINE = b"mine, and nobody else's"


def commands(run, images, out):
    """Return the arguments of each writing command, the files it writes, and their folder."""
    digits = ["digits-cut", "--data.images_per_class=10", "--data.batch_size=8"]
    return {
        "predict": (["predict", str(run), str(images), "--out", f"{out}/a.csv"], ["a.csv"]),
        "compare": (
            ["compare", str(run), "--out", str(out)], ["comparison.csv", "comparison.md", "comparison.html"]
        ),
        "preview": (["preview", *digits, "--out", str(out)], ["preview.png", "preview.html"]),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["predict", "compare", "preview"])
def test_files_of_others_stay(trained, gone, new_images, tmp_path, capsys, few_masks, name):
    """Each file alone, and a link to it; mixmo's own are replaced, --overwrite replaces all."""
    words, files = commands(gone if name == "predict" else trained[2].path, new_images, tmp_path / "out")[name]
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").write_bytes(MINE)
    for file in files:
        for make in (lambda place: place.write_bytes(MINE), lambda place: place.symlink_to(tmp_path / "elsewhere")):
            make(tmp_path / "out" / file)
            assert main(words) == 2
            error = capsys.readouterr().err
            assert f"{file} exists already and is" in error and "set overwrite to replace it" in error
            assert error.count("\n") == 1
            assert [each.name for each in (tmp_path / "out").iterdir()] == [file]
            assert (tmp_path / "out" / file).read_bytes() == MINE
            (tmp_path / "out" / file).unlink()
    (tmp_path / "out" / files[0]).write_bytes(MINE)
    assert main([*words, "--overwrite"]) == 0
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == sorted(files)
    assert main(words) == (2 if name == "predict" else 0)  # a table of answers says not whose it is
    (tmp_path / "out" / files[0]).unlink()
    (tmp_path / "out" / files[0]).mkdir()
    capsys.readouterr()
    assert main([*words, "--overwrite"]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_images_are_never_replaced_by_their_answers(gone, tmp_path, capsys):
    write_images(tmp_path, classes=("new",), count=1)
    image = (tmp_path / "new/000.png").rename(tmp_path / "new/a.csv")
    content = image.read_bytes()
    assert main(["predict", str(gone), str(image), "--out", str(image), "--overwrite"]) == 2
    assert "is one of the images" in capsys.readouterr().err and image.read_bytes() == content


def test_measurements_are_known_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mixmo.cli.benchmark.benchmark", lambda case: {"table": {"row": {"time": 1.0}}})
    place = tmp_path / "a.json"
    for _ in range(2):
        assert main(["benchmark", "--save", str(place)]) == 0
    assert "about" in json.loads(place.read_text())
    place.write_text(json.dumps({"mine": 1}))
    assert main(["benchmark", "--save", str(place)]) == 2
    assert "exists already" in capsys.readouterr().err and json.loads(place.read_text()) == {"mine": 1}
