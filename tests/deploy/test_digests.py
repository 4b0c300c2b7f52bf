"""Exports have a digest of all contents: damage is reported, and never changes a prediction."""

import json
import stat

import pytest
import torch
from damage import count_outcomes
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mixmo
from mixmo.deploy.export import FORMATS
from mixmo.digests import is_whole_export
from mixmo.errors import InputError
from mixmo.training.initial_weights import read_tensors

FORMS = [*FORMATS, "shared"]


def answers_of(path, files):
    """Return a network's predictions, or the weights in a file, as bytes."""
    if path.suffix == ".safetensors":
        return b"".join(each.numpy().tobytes() for _, each in sorted(read_tensors(path)[""].items()))
    return mixmo.Predictor(path)(files).probabilities.numpy().tobytes()


@pytest.mark.parametrize("form", FORMS)
def test_damage_changes_no_answer_unnoticed(exported, new_images, form):
    files, path = sorted(new_images.iterdir())[:2], exported[form]
    refused, same, wrong = count_outcomes(
        path, lambda own: answers_of(own, files), answers_of(path, files), 8, InputError
    )
    assert not wrong and refused >= 8
    assert same <= (24 if form == "shared" else 0)  # its card, and the two files for timm


@pytest.mark.parametrize("form", [form for form in FORMS if form != "safetensors"])
def test_a_digest_that_is_gone_is_noticed(exported, tmp_path, new_images, form):
    """mixmo's own exports cannot lose it: the description records it, and allows no unknown keys."""
    path = exported[form]
    file = path / "mixmo.json" if path.is_dir() else path
    content = file.read_bytes()
    try:
        file.write_bytes(content.replace(b'"sha256"', b'"sha257"', 1))
        with pytest.raises(InputError, match="damaged"):
            mixmo.Predictor(path)
    finally:
        file.write_bytes(content)


def test_folders_without_a_digest_still_open(exported, new_images, tmp_path):
    """Other programs may have written them."""
    files, folder = sorted(new_images.iterdir()), exported["timm"]
    content = json.loads((folder / "mixmo.json").read_text())
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    plain = {key: value for key, value in content.items() if key not in ("files", "sha256")}
    (tmp_path / "mixmo.json").write_text(json.dumps(plain))
    assert answers_of(tmp_path, files) == answers_of(folder, files)
    assert not is_whole_export(tmp_path) and is_whole_export(folder)
    content["classes"].append("eleventh")
    (tmp_path / "mixmo.json").write_text(json.dumps(plain | {"classes": content["classes"]}))
    with pytest.raises(InputError, match=r"names 4 classes, but outputs"):
        mixmo.Predictor(tmp_path)


def test_weights_to_start_from_are_checked(exported, tmp_path):
    """Damage is detected in mixmo's files, not in those of other programs."""
    weights = load_file(exported["safetensors"])
    with safe_open(exported["safetensors"], "pt") as content:
        notes = content.metadata()
    name = next(iter(weights))
    save_file({key: value + (key == name) for key, value in weights.items()}, tmp_path / "a.safetensors", notes)
    with pytest.raises(InputError, match="is damaged: its content does not match its digest"):
        read_tensors(tmp_path / "a.safetensors")[""]
    save_file(weights, tmp_path / "b.safetensors", {"sha256": "0" * 64, "format": "pt"})
    assert torch.equal(read_tensors(tmp_path / "b.safetensors")[""][name], weights[name])


def test_exports_have_the_rights_that_the_umask_leaves(exported):
    for path in exported.values():
        for each in [path, *(path.iterdir() if path.is_dir() else ())]:
            assert stat.S_IMODE(each.stat().st_mode) == (0o750 if each.is_dir() else 0o640), each
