"""Temporary paths for files and folders: nothing is left behind, and no other file is touched."""

import os
import time

import pytest

from mixmo.errors import InputError
from mixmo.files import assemble


def make(path, text="new"):
    with assemble(path) as made:
        made.mkdir()
        (made / "content").write_text(text)


def test_a_folder_takes_the_place_of_another_and_nothing_else_is_left(tmp_path):
    for text in ("old", "new"):
        make(tmp_path / "out", text)
    assert [each.name for each in tmp_path.rglob("*")] == ["out", "content"]
    assert (tmp_path / "out" / "content").read_text() == "new"


@pytest.mark.parametrize("error", [KeyError, OSError(28, "No space left on device")])
def test_what_was_there_stays_where_the_block_fails(tmp_path, error):
    make(tmp_path / "out", "old")
    with pytest.raises((KeyError, InputError)), assemble(tmp_path / "out"):
        raise error
    assert [each.name for each in tmp_path.rglob("*")] == ["out", "content"]
    assert (tmp_path / "out" / "content").read_text() == "old"


def test_what_a_killed_process_left_is_removed_later(tmp_path):
    """After an hour, since another process may be using it, and only leftovers of the same path."""
    folders = {age: tmp_path / f".{name}.0123abc{age}.partial" for name, age in (("out", 0), ("out", 2), ("other", 3))}
    for age, folder in folders.items():
        folder.mkdir()
        os.utime(folder, (time.time() - 3600 * age,) * 2)
    make(tmp_path / "out")
    assert {age for age, folder in folders.items() if folder.exists()} == {0, 3}
