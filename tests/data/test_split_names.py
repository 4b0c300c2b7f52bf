"""Names of the folders of splits, and of folders that look like them."""

import pytest
from conftest import open_data, open_source, write_tree

from mixmo.config.data_settings import DataSettings
from mixmo.data.datasets import NamedDataset
from mixmo.errors import InputError


@pytest.mark.parametrize("names_of_splits", [("Train", "Test"), ("TRAIN", "val"), ("train", "Validation")])
def test_splits_may_be_named_in_capitals(tmp_path, names_of_splits):
    write_tree(tmp_path, *(f"{part}/{c}/{i}.png" for part in names_of_splits for c in ("a", "b") for i in range(4)))
    data = open_data(DataSettings(name=f"folder:{tmp_path}", batch_size=4, validation=0.0, padding=0, channels=1))
    assert data.classes == ["a", "b"] and data.drawn_splits is None and len(data.train) == len(data.test) == 8


def test_a_class_may_be_called_train(tmp_path):
    write_tree(tmp_path, *(f"{vehicle}/{i}.png" for vehicle in ("Bus", "Train") for i in range(4)))
    assert open_source(f"folder:{tmp_path}", "all").classes == ["Bus", "Train"]


def test_a_class_called_train_may_have_folders(tmp_path, caplog):
    write_tree(
        tmp_path, *(f"{top}/{i}.png" for top in ("Bus/a", "Car/a", "Train/day", "Train/night") for i in range(4))
    )
    assert open_source(f"folder:{tmp_path}", "all").classes == ["Bus", "Car", "Train"]
    (tmp_path / "Train").rename(tmp_path / "train")
    assert open_source(f"folder:{tmp_path}", "train").classes == ["day", "night"]
    assert "has splits; left out the folders Bus, Car" in caplog.text


@pytest.mark.parametrize(
    "tops", [("Training", "Testing"), ("train_set", "test_set"), ("trainImages", "VAL data"), ("training",)]
)
def test_folders_named_like_splits_are_no_classes(tmp_path, tops):
    write_tree(tmp_path, *(f"{top}/{c}/{i}.png" for top in tops for c in ("a", "b") for i in range(2)))
    with pytest.raises(InputError, match="which look like splits rather than classes; rename them train, test or val"):
        NamedDataset(f"folder:{tmp_path}")
