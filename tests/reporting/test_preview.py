"""Previews of the network's input: they show training's draws, on self-contained pages."""

import base64
import errno
import io
import os
import re

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image

from mixmo.batch_mixing import MixedBatch
from mixmo.cli.main import main
from mixmo.config.data_settings import DataSettings
from mixmo.masks import KINDS
from mixmo.reporting import preview as module
from mixmo.reporting.page import photo_uri
from mixmo.reporting.preview import MIXTURES, blend, color_masks, describe_target, draw_mixtures, montage, to_rgb


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [["--pixels.kind=cutmix", "--model.num_members=3"], ["--model.num_members=1"]], ids=lambda own: own[-1]
)
def test_a_preview_is_a_picture_and_a_page(tmp_path, capsys, overrides):
    out = tmp_path / "deep" / "preview"
    assert main(["preview", "digits-cut", *overrides, "--out", str(out)]) == 0
    files = capsys.readouterr().out.split()
    assert files == [str(out / name) for name in ("preview.png", "preview.html")]
    picture = np.asarray(Image.open(out / "preview.png").convert("L"))
    assert min(picture.shape) > 1000 and picture.std() > 10
    page = (out / "preview.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert not re.search(r'(?:src|href)="(?!data:)', page)  # nothing is fetched
    for text in ("one mixture of a training step", "every kind of mask", "Configuration", "batch_repetition"):
        assert text in page
    assert sorted(file.name for file in out.iterdir()) == ["preview.html", "preview.png"]


@pytest.fixture
def titles(monkeypatch):
    """Returns the titles above the pictures of the mixtures, by row."""
    drawn, honest = [], draw_mixtures

    def kept(figure, *rest):
        honest(figure, *rest)
        drawn.append(figure)

    monkeypatch.setattr(module, "draw_mixtures", kept)

    def read():
        found = [axis.get_title() for axis in drawn[0].axes]
        columns = len(found) // MIXTURES
        return [found[start : start + columns] for start in range(0, len(found), columns)]

    return read


@pytest.mark.parametrize(
    ("end", "words"), [("null", "50 % of the mixtures all"), ("0", "at first and 0 % at the end, all")]
)
def test_a_preview_shows_input_repetition(tmp_path, titles, end, words, few_masks):
    """Two of the four mixtures at rho = 0.5: both members have one target."""
    overrides = ["--data.input_repetition=0.5", f"--data.input_repetition_end={end}"]
    assert main(["preview", "digits-cut", *overrides, "--out", str(tmp_path)]) == 0
    assert words in (tmp_path / "preview.html").read_text()
    shared = [row for row in titles() if "one image" in row[-1]]
    assert len(titles()) == 4 and len(shared) >= 2
    assert all(row[0].removeprefix("input 0") == row[2].removeprefix("input 1") for row in shared)


def test_a_preview_of_pictures_in_colour(tmp_path, titles, few_masks):
    write_images(tmp_path / "data" / "train", size=16)
    write_images(tmp_path / "data" / "test", size=16)
    words = ["cifar100-mini-cut-cutmix", f"--data.name=folder:{tmp_path}/data", "--data.batch_size=4"]
    assert main(["preview", *words, "--out", str(tmp_path / "out")]) == 0
    name = "(?:cat|dog|emu)"
    for row in titles():
        assert len(row) == 5
        for title in (row[0], row[2]):
            assert re.fullmatch(rf"input \d\n({name}|0\.\d\d {name} \+ 0\.\d\d {name})", title)


def test_awkward_names_of_classes(tmp_path, few_masks):
    for split in ("train", "test"):
        write_images(tmp_path / "data" / split, classes=("$a^{$", "<b>"), size=16)
    words = ["cifar100-mini-cut", f"--data.name=folder:{tmp_path}/data", "--data.batch_size=4"]
    assert main(["preview", *words, "--out", str(tmp_path / "out")]) == 0
    assert "<b>" not in (tmp_path / "out" / "preview.html").read_text()


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, capsys, few_masks):
    (tmp_path / "preview.png").write_text("Software\0mixmo")  # an earlier preview

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    assert main(["preview", "digits-cut", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"mixmo: {tmp_path}/preview.png cannot be written: No space left on device.\n"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("preview.png", "Software\0mixmo")]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, few_masks, capsys):
    (tmp_path / "file").write_text("")
    assert main(["preview", "digits-cut", "--out", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err == f"mixmo: {tmp_path}/file/out cannot be written: Not a directory.\n"


def test_nothing_overflows(tmp_path, chromium, few_masks):
    assert main(["preview", "digits-cut", "--out", str(tmp_path)]) == 0
    widths = (1280, 768, 400)
    frames, log = chromium(tmp_path / "preview.html", *widths)
    assert "CONSOLE" not in log
    for width, found in zip(widths, frames, strict=True):
        assert "What the network sees" in found["text"]
        assert found["opened"] <= width and found["outside"] == [] and found["unnamed"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits-cutt"], "did you mean 'digits-cut'"),
        ([], "preview needs recipe"),
        (["digits-cut", "--mixer.kind=vornoi"], "unknown mixer.kind 'vornoi'; did you mean 'voronoi'"),
        (["digits-cut", "--run=x"], "unknown option '--run'"),
        (["digits-cut", "--mixer.kind=grid", "--model.num_members=17"], "'grid' has 16 cells"),
    ],
)
def test_bad_input_is_one_sentence(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["preview", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_montage_shows_every_channel():
    mask = torch.arange(5.0)[:, None, None].expand(5, 2, 3)
    picture = montage(mask)
    assert picture.shape == (4, 9)
    assert picture[:2].tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 2
    assert picture[2:, :6].tolist() == [[3, 3, 3, 4, 4, 4]] * 2


def test_pictures_undo_the_normalisation():
    own = DataSettings(channels=3, mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 0.2])
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(values)[:, None, None] for values in (own.mean, own.std))
    np.testing.assert_allclose(to_rgb((pixels - mean) / std, own), pixels.permute(0, 2, 3, 1), atol=1e-6)


def test_the_mixture_is_the_sum_of_masked_inputs():
    inputs = np.stack([np.full((4, 4, 3), 0.25), np.full((4, 4, 3), 0.75)])
    masks = torch.zeros(2, 1, 2, 2)
    masks[0, :, 0], masks[1, :, 1] = 1, 1  # on a map of half the size
    assert blend(inputs, masks)[:, 0, 0].tolist() == [0.25, 0.25, 0.75, 0.75]
    assert not np.array_equal(color_masks(masks)[0, 0], color_masks(masks)[1, 0])


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (torch.tensor([[1]]), "dog"),
        (torch.tensor([[[0.25, 0.75, 0.0]]]), "0.75 dog + 0.25 cat"),
        (torch.tensor([[[1.0, 0.0, 1.0]]]), "cat + emu"),
        (torch.tensor([[[1.0, 0.25, 0.75]]]), "1.00 cat + 0.75 emu + 0.25 dog"),
        (torch.zeros(1, 1, 3), "none"),
    ],
)
def test_targets_in_words(target, text):
    empty = torch.zeros(1, 1)
    assert describe_target(MixedBatch(empty, empty, target, empty, empty), 0, ["cat", "dog", "emu"]) == text


def test_every_kind_is_in_the_catalogue():
    assert len(KINDS) == 17


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_any_number_of_bands_has_a_picture(channels):
    inputs = torch.rand(2, channels, 4, 6)
    shown = to_rgb(inputs, DataSettings(channels=channels, mean=[0], std=[1]))
    first = inputs[:, :3] if channels > 2 else inputs[:, :1].expand(-1, 3, -1, -1)
    assert np.allclose(shown, first.permute(0, 2, 3, 1))
    uri = photo_uri((inputs[0].permute(1, 2, 0) * 255).byte().numpy())
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert picture.size == (6, 4) and picture.mode == ("RGB" if channels > 2 else "L")
