"""Real-world tables: written by spreadsheets, with other column names, with path patterns."""

import numpy as np
import pytest
from conftest import open_data, open_source, write_tree
from PIL import Image

from mixmo.config.data_settings import DataSettings
from mixmo.data import messages
from mixmo.data.sources import decode
from mixmo.errors import InputError


def test_a_table_as_spreadsheets_write_it(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number}.png")
    rows = [f"images\\{number}.png;{'ab'[number % 2]}" for number in range(8)]
    (tmp_path / "t.csv").write_text("\r\n".join(["path;label", *rows]), encoding="utf-8-sig")
    source = open_source(f"csv:{tmp_path}/t.csv", "all")
    assert [decode(source, number, None, 3).max() for number in range(8)] == list(range(8))


def test_columns_by_other_names_and_paths_by_a_pattern(tmp_path, caplog):
    (tmp_path / "train").mkdir()
    for number in range(12):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"train/{number:04}.jpg")
    rows = [f"{number:04},{'ab'[number % 2]},p{number // 4}" for number in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["id,breed,patient", *rows]))
    name = f"csv:{tmp_path}/t.csv"
    with pytest.raises(InputError, match=r"columns id, breed, patient.* data\.columns: {path: COLUMN, label: COLUMN}"):
        open_source(name, "all")
    own = {"path": "train/{id}.jpg", "label": "breed"}
    assert open_source(name, "all", columns=own).groups is None
    (said,) = [text for text in caplog.messages if "not used: patient." in text]
    assert "data.columns: {group: patient}" in said
    source = open_source(name, "all", columns=own | {"group": "patient"})
    assert (source.groups.reshape(3, 4) == source.groups[::4, None]).all() and len(set(source.groups)) == 3
    assert source.name(3).endswith("train/0003.jpg") and decode(source, 3, None, 3).shape == (8, 8, 3)
    with pytest.raises(InputError, match=r"names the column 'no' for path, but .* has id, breed, patient"):
        open_source(name, "all", columns={"path": "train/{no}.jpg", "label": "breed"})
    with pytest.raises(InputError, match=r"data\.columns has paths: 'id'; it names columns for path, label,"):
        open_source(name, "all", columns={"paths": "id"})


@pytest.mark.parametrize("separator", [";", ","])
def test_other_separators_of_labels_are_named(tmp_path, caplog, separator, monkeypatch):
    monkeypatch.setattr(messages, "_LOGGED", set())
    write_tree(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text(f"path\tlabel\na.png\tcar{separator}bike\nb.png\tbus\n")
    assert open_source(f"csv:{tmp_path}/t.csv", "all", multi_label=True).classes == ["bus", f"car{separator}bike"]
    assert (
        f"has the label car{separator}bike, used as one class; several labels of an image are separated by |"
        in caplog.text
    )
    with pytest.raises(InputError, match=r"data\.columns is for tables .*; digits has none: leave it out"):
        open_source("digits", "train", columns={"label": "x"})


def test_files_that_a_table_names_but_are_missing_are_named_before_training(tmp_path):
    write_tree(tmp_path, "a.png", "b.png")
    rows = ["path,label,split", "a.png,x,train", "b.png,y,train", "c.png,x,test", "d.png,y,test"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    with pytest.raises(InputError, match=r"names 2 missing files \(c.png in line 4, d.png in line 5\); correct it, or"):
        open_source(f"csv:{tmp_path}/t.csv", "train")
    assert len(open_source(f"csv:{tmp_path}/t.csv", "test", on_error="skip")) == 2


TABLES = {
    "": "has the columns none; it needs path and label",
    "name,label\na.png,x\n": "has the columns name, label; it needs path and label",
    "path,label\na.png\n": "line 2, does not have the columns of the first line",
    "path,label\na.png,x,y\n": "line 2, does not have the columns of the first line",
    "path,label\na\0b.png,x\n": "cannot be read as comma-separated values in UTF-8: embedded null byte",
    "path,label\na.png,\n": "line 2, has no label; leave such images out with data.on_error: skip, or set",
    "path,label,split\na.png,x,train\nb.png,y,\n": "line 3, has no split",
    "path,label,split\na.png,x,train\nb.png,y,train\n./a.png,x,test\n": "line 4, repeats ./a.png of line 2",
    "path,label\nc/../a.png,x\na.png,y\n": "line 3, repeats a.png of line 2",
    "path,label\na.png,x\nlink.png,y\n": "line 3, repeats link.png of line 2",
    "path,label,split\na.png,x,train\nb.png,y,holdout\n": "has a split named holdout; use train, test and val",
    "path,label\na.png,x\n": "has one class only (x)",
    "path,label,label\na.png,x,0\nb.png,y,1\n": "has several columns named label; rename or remove all but one",
    'path,label\n"a.png,x\n': "cannot be read as comma-separated values",
    "path,label,split\na.png,x,test\nb.png,y,test\n": "has no images for train: nothing in it is named train",
}


@pytest.mark.parametrize("content", TABLES)
def test_tables_that_are_none_are_one_sentence(tmp_path, content):
    write_tree(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text(content)
    (tmp_path / "c").mkdir()
    (tmp_path / "link.png").symlink_to("a.png")
    with pytest.raises((InputError, FileNotFoundError)) as error:
        open_data(DataSettings(name=f"csv:{tmp_path}/t.csv", batch_size=4, validation=0.0, padding=0, channels=1))
    assert TABLES[content] in str(error.value) and "\n" not in str(error.value)


def test_tables_are_read_as_spreadsheets_write_them(tmp_path):
    """With a byte-order mark, other column names, capitals and spaces; missing images are named."""
    write_tree(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text("Filename, Class\r\na.png,x\r\n b.png ,y\r\n", encoding="utf-8-sig")
    source = open_source(f"csv:{tmp_path}/t.csv", "all")
    assert source.classes == ["x", "y"] and isinstance(source.read(1), bytes)
    (tmp_path / "t.csv").write_text("path,label\na.png,x\nb.png,y\nc.png,x\nd.png,y\n")
    with pytest.raises(InputError, match=r"names 2 missing files \(c\.png in line 4, d\.png in line 5\)"):
        open_source(f"csv:{tmp_path}/t.csv", "all")
