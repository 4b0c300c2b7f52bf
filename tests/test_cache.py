"""Cached results: intact, or recomputed with a warning."""

import errno
import logging
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import mutations

from mixmo.cache import cache_json, cache_tensors, read_json, read_tensors

TENSORS = {"logits": torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]), "targets": torch.tensor([0, 2])}
NOTE = {"about": {"dataset": "test", "share": 0.1}, "classes": ["a", "\udcff"], "epochs": 3}
METRICS = {"about": NOTE, "whole": True, "kinds": {"fog": {1: {"accuracy": 0.25, "nll": 1.1}, 2: {"accuracy": 0.5}}}}
READ = METRICS | {"kinds": {"fog": {"1": {"accuracy": 0.25, "nll": 1.1}, "2": {"accuracy": 0.5}}}}


def same(found):
    return found[1] == NOTE and all(torch.equal(found[0][name], TENSORS[name]) for name in TENSORS)


def test_what_was_kept_comes_back(tmp_path):
    assert cache_tensors(tmp_path / "deep" / "a.safetensors", TENSORS, NOTE)
    assert same(read_tensors(tmp_path / "deep" / "a.safetensors"))
    assert cache_json(tmp_path / "a.json", METRICS)
    assert read_json(tmp_path / "a.json") == READ


def test_the_same_content_is_the_same_file(tmp_path):
    for number in range(8):
        cache_tensors(tmp_path / f"{number}.safetensors", TENSORS, NOTE)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_nothing_kept_is_nothing_to_warn_of(tmp_path, caplog):
    assert read_tensors(tmp_path / "a.safetensors") is None
    assert read_json(tmp_path / "a.json") is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "keep", "read", "same"),
    [
        ("a.safetensors", lambda file: cache_tensors(file, TENSORS, NOTE), read_tensors, same),
        ("a.json", lambda file: cache_json(file, METRICS), read_json, lambda found: found == READ),
    ],
    ids=["tensors", "json"],
)
@settings(max_examples=200)
@given(data=st.data())
def test_damage_is_noticed(tmp_path_factory, name, keep, read, same, data):
    """Results are read as written; anything else gives a one-line warning."""
    file = tmp_path_factory.getbasetemp() / name
    keep(file)
    file.write_bytes(data.draw(mutations(file.read_bytes())))
    warnings = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("mixmo"), "warning", lambda text, *rest: warnings.append(text % rest))
        found = read(file)
    if found is None:
        assert warnings == [f"{file} is damaged or of an earlier version; it is computed again."]
    else:
        assert same(found) and not warnings


def test_two_processes_may_keep_the_same_thing(tmp_path, caplog):
    """A concurrent reader finds a complete file."""
    file = tmp_path / "a.safetensors"
    cache_tensors(file, TENSORS, NOTE)
    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(lambda: [cache_tensors(file, TENSORS, NOTE) for _ in range(30)]) for _ in range(2)]
        while not all(writer.done() for writer in writers):
            assert same(read_tensors(file))
        assert all(all(writer.result()) for writer in writers)
    assert not caplog.records and [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_cannot_be_kept_is_a_warning(tmp_path, monkeypatch, caplog):
    file = tmp_path / "a.json"
    cache_json(file, METRICS)

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    assert not cache_json(file, {"whole": False})
    assert not cache_tensors(tmp_path / "a.safetensors", TENSORS, NOTE)
    assert caplog.messages[0] == f"{file} cannot be written: No space left on device. The result is not cached."
    assert read_json(file) == READ and [each.name for each in tmp_path.iterdir()] == ["a.json"]
