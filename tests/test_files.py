"""Places to make files and folders in: nothing is left of them, and nothing of others is touched."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock

from mixmo.assembling import EARLIER, LOCK, assemble


def make(path):
    with assemble(path) as made:
        made.mkdir()
        (made / "content").write_text("new")


def hidden(path, *names):
    """Return a folder as a killed process leaves it."""
    folder = path.with_name(f".{path.name}.0123abcd.partial")
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("names", [(), (LOCK,), (LOCK, "out", "out.prepared")])
def test_what_a_killed_process_left_is_removed(tmp_path, names):
    """At whatever moment: before its lock, with it, and while it was cleaning up, which removes the lock last."""
    hidden(tmp_path / "out", *names)
    make(tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_what_was_moved_away_comes_back(tmp_path):
    folder = hidden(tmp_path / "out", LOCK)
    (folder / EARLIER).mkdir()
    (folder / EARLIER / "content").write_text("old")
    with pytest.raises(KeyError), assemble(tmp_path / "out"):
        raise KeyError
    assert (tmp_path / "out" / "content").read_text() == "old" and not folder.exists()


def test_what_others_made_or_are_making_stays(tmp_path):
    others = hidden(tmp_path / "other", "file")
    at_work = hidden(tmp_path / "out", LOCK, "out")
    with FileLock(at_work / LOCK):
        make(tmp_path / "out")
        make(tmp_path / "other")
        assert (at_work / "out").exists() and (others / "file").exists()


def test_many_make_the_same_thing_at_once(tmp_path):
    make(tmp_path / "out")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, [tmp_path / "out"] * 64))
    assert [each.name for each in tmp_path.rglob("*")] == ["out", "content"]
