"""Sharing: a folder with everything that mixmo and timm need, and a model card with results."""

import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from conftest import write_images
from torch import nn

import mixmo
from mixmo.cli.main import main
from mixmo.deploy.hub import save_pretrained
from mixmo.errors import InputError
from mixmo.runs import RunFolder

QUICK = {"batch_size": 8, "crop_size": None, "progress": False}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run with a test set, evaluated."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_images(folder / "photos", count=20, size=10)
    words = [f"--data.name=folder:{folder}/photos", "--data.channels=3", "--data.batch_size=8", "--data.validation=0.4"]
    assert main(["fit", "digits-cut", *words, "--trainer.max_epochs=2", f"--run={folder}/run"]) == 0
    assert main(["test", f"{folder}/run"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def images():
    """Random images and labels of three classes."""
    return torch.randint(256, (48, 16, 16, 3), dtype=torch.uint8), torch.arange(48) % 3


class Hub:
    """A fake Hub in a folder: uploads can be downloaded."""

    def __init__(self, folder):
        self.folder, self.made = folder, []

    def module(self):
        return SimpleNamespace(HfApi=lambda token: self, snapshot_download=self.download)

    def create_repo(self, name, private, exist_ok):
        self.made.append((name, private, exist_ok))

    def upload_folder(self, repo_id, folder_path, **options):
        shutil.copytree(folder_path, self.folder / repo_id)
        return f"at {repo_id} {options}"

    def download(self, name, allow_patterns):
        if not (self.folder / name).is_dir():
            raise FileNotFoundError("404: no such repository")
        target = self.folder / f"{name}-downloaded"
        target.mkdir(parents=True)
        for file in allow_patterns:
            if (self.folder / name / file).is_file():
                shutil.copy(self.folder / name / file, target)
        return str(target)


def test_a_round_trip_keeps_everything(evaluated, new_images, tmp_path, monkeypatch):
    hub = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub.module())
    assert mixmo.push_to_hub(evaluated, "me/photos", private=True, commit_message="new") == (
        "at me/photos {'commit_message': 'new'}"
    )
    assert hub.made == [("me/photos", True, True)]
    again = mixmo.from_pretrained("me/photos")
    state = mixmo.load(evaluated).state_dict()
    assert again.state_dict().keys() == state.keys() and not again.training
    assert all(torch.equal(again.state_dict()[key], value) for key, value in state.items())
    files = sorted(new_images.iterdir())
    expected, found = (mixmo.Predictor(path)(files) for path in (evaluated, tmp_path / "me/photos"))
    assert torch.equal(found.probabilities, expected.probabilities) and torch.equal(found.epistemic, expected.epistemic)
    assert torch.equal(found.defer, expected.defer) and found.classes == expected.classes
    with pytest.raises(FileNotFoundError, match="there is no folder me/other, and the Hub says: 404"):
        mixmo.from_pretrained("me/other")


def test_timm_opens_a_shared_folder(evaluated, tmp_path):
    folder = save_pretrained(evaluated, tmp_path / "shared")
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), mixmo.load(evaluated)(images), atol=1e-5, rtol=1e-5)


def test_no_path_of_this_machine_is_shared(evaluated, tmp_path):
    folder = save_pretrained(evaluated, tmp_path / "shared")
    for file in folder.iterdir():
        assert str(evaluated.parent).encode() not in file.read_bytes(), file


def test_the_card_has_the_figures_of_the_test(evaluated, tmp_path):
    card = (save_pretrained(evaluated, tmp_path / "shared") / "README.md").read_text()
    assert card.startswith("---\npipeline_tag: image-classification\n")
    found = RunFolder(evaluated).read_json("test.json")
    for key, factor, digits in (("accuracy", 100, 2), ("nll", 1, 4), ("ece", 100, 2), ("temperature", 1, 4)):
        assert f"| {found[key] * factor:.{digits}f} |" in card, key
    assert re.search(r"\| Accuracy ↑ \| [\d.]+ \| \[[\d.]+, [\d.]+\] \|", card)
    assert re.search(r"\| ECE ↓ \| [\d.]+ \|  \|", card) and "logits (B, K)" in card
    assert "12 test images" in card and "cat, dog, emu" in card and "16×16" in card and "20 validation images" in card
    shutil.copytree(evaluated, tmp_path / "run")
    assert "net(images): the ensemble's logits (B, K); net.members(images): each member's (B, M, K)" in card
    assert 'mixmo.from_pretrained("path/to/folder")' in card and "THIS" not in card
    assert "timm.create_model" not in card and "which timm knows after `import mixmo`" in card
    named = save_pretrained(evaluated, tmp_path / "named", name="me/photos") / "README.md"
    assert 'mixmo.from_pretrained("me/photos")' in named.read_text()
    about = found["about"] | {"digest": "of another checkpoint"}
    RunFolder(tmp_path / "run").write_json("test.json", found | {"about": about})
    card = (save_pretrained(tmp_path / "run", tmp_path / "another") / "README.md").read_text()
    assert "was run on another checkpoint" in card and "| Accuracy" not in card
    (tmp_path / "run/test.json").unlink()
    assert "Not evaluated yet" in (save_pretrained(tmp_path / "run", tmp_path / "other") / "README.md").read_text()


def test_members_that_reach_deeper_are_shared_without_timm(tmp_path):
    words = ["--data.images_per_class=10", "--model.mix_at=stages.0", "--trainer.max_epochs=1", f"--run={tmp_path}/run"]
    assert main(["fit", "digits-cut", *words]) == 0
    folder = save_pretrained(tmp_path / "run", tmp_path / "shared")
    assert "are not fused into one plain network" in (folder / "README.md").read_text()
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(mixmo.from_pretrained(folder)(images), mixmo.load(tmp_path / "run")(images))


def test_a_network_from_a_local_folder_is_shared_without_that_folder(evaluated, images, tmp_path):
    start = tmp_path / "start"
    timm.models.save_for_hf(timm.create_model("resnet10t", num_classes=10), start, model_args={"drop_rate": 0.25})
    run = mixmo.fit(f"local-dir:{start}", images, epochs=1, pretrained=True, image_size=16, **QUICK)
    x = torch.randn(2, 3, 16, 16)
    expected = run.network.cpu()(x)
    folders = save_pretrained(run, tmp_path / "shared"), run.export("safetensors").path
    assert "on resnet10t" in (folders[0] / "README.md").read_text()
    shutil.rmtree(start)
    for folder in folders:
        net = mixmo.load(folder)
        assert net.backbone.drop_rate == 0.25
        torch.testing.assert_close(net(x), expected, atol=1e-5, rtol=1e-5)


def test_a_module_of_ones_own_is_shared(images, tmp_path):
    def net():
        return mixmo.MixMo(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 3)), 2, stem="0", head="2")

    run = mixmo.fit(net(), images, epochs=1, **QUICK)
    folder = save_pretrained(run, tmp_path / "shared")
    assert 'from_pretrained("path/to/folder", model=net)  # net: a new Sequential' in (folder / "README.md").read_text()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(mixmo.from_pretrained(folder, model=net())(x), run.network.cpu()(x))


def test_what_cannot_be_shared_is_one_sentence(evaluated, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="full exists already"):
        save_pretrained(evaluated, tmp_path / "full")
    with pytest.raises(FileNotFoundError, match="no run folder"):
        save_pretrained(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"it has no members\.safetensors"):
        mixmo.from_pretrained(tmp_path / "full")
    folder = save_pretrained(evaluated, tmp_path / "shared")
    (folder / "members.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"members\.safetensors is damaged: it does not match its digest"):
        mixmo.from_pretrained(folder)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["full", "shared"]
