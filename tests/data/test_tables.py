"""Tables as people have them: written by spreadsheets, with columns by other names, with patterns of paths."""

import numpy as np
import pytest
from PIL import Image

from mixmo.data.datasets import open_source
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
    with pytest.raises(
        InputError, match=r"columns id, breed, patient.* --data\.columns '{path: COLUMN, label: COLUMN}'"
    ):
        open_source(name, "all")
    own = {"path": "train/{id}.jpg", "label": "breed"}
    assert open_source(name, "all", columns=own).groups is None
    (said,) = [text for text in caplog.messages if "not used: patient." in text]
    assert "--data.columns '{group: patient}'" in said
    source = open_source(name, "all", columns=own | {"group": "patient"})
    assert source.groups.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.name(3).endswith("train/0003.jpg") and decode(source, 3, None, 3).shape == (8, 8, 3)
    with pytest.raises(InputError, match=r"names the column 'no' for path, but .* has id, breed, patient"):
        open_source(name, "all", columns={"path": "train/{no}.jpg", "label": "breed"})
    with pytest.raises(InputError, match=r"data\.columns has paths: 'id'; it names columns for path, label,"):
        open_source(name, "all", columns={"paths": "id"})
