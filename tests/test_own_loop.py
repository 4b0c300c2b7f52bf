"""The page "In your own loop": its Python runs from top to bottom and does what the page claims."""

import inspect
import re
from pathlib import Path

import pytest
import timm.loss
import torch
import torch.nn.functional as F

import mixmo
from mixmo.config.keywords import keywords

PAGE = (Path(__file__).parents[1] / "docs" / "own-loop.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names, seen = {}, []
    for block in BLOCKS:
        exec(compile(block, "docs/own-loop.md", "exec"), names)
        seen.append(dict(names))
    trained, averaged, saved, with_timm, with_lightning = seen
    assert trained["batch"].inputs.shape == (16, 2, 3, 32, 32)
    norms = [part for part in averaged["best"].modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms and all(part.num_batches_tracked == len(trained["loader"]) for part in norms)
    assert saved["classes"].shape == (40,) and "member_1/nll" in saved["metrics"]
    with torch.no_grad():
        expected = saved["net"](saved["images"])
        assert torch.equal(expected.argmax(1), saved["classes"])
        torch.testing.assert_close(saved["plain"](saved["images"]), expected, atol=1e-5, rtol=0)
    assert with_timm["config"]["mean"] == (0.5, 0.5, 0.5) and len(with_timm["optimizer"].param_groups) > 20
    assert with_timm["top1"] <= with_timm["top5"]
    trainer = with_lightning["trainer"]
    assert trainer.global_step == 10 and torch.isfinite(trainer.callback_metrics["val_nll"])


@pytest.mark.slow
def test_the_page_of_fit_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "fit.md").read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/fit.md", "exec"), names)
    assert names["file"].is_file() and len(names["predictions"]) == 3
    torch.testing.assert_close(names["logits"].cpu(), names["net"](names["images"][:3].float() / 127.5 - 1))
    assert {"accuracy", "nll_scaled"} <= names["metrics"].keys() and (tmp_path / "runs/mine/report.html").is_file()
    named = re.findall(r"`(\w+)(?:=[^`]*)?`", page[page.index("## Settings") : page.index("`out=None`")])
    assert len(set(named) & set(keywords())) > 12


def test_settings_of_the_table_are_arguments():
    made, called = (inspect.signature(each).parameters for each in (mixmo.BatchMixer, mixmo.BatchMixer.__call__))
    named = re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)
    assert len(named) == 7 and {*named} <= {*made, *called}


@pytest.mark.parametrize("pixels", [None, "cutmix"])
def test_the_loss_trains_every_member_and_timms_one_only(pixels):
    """Label smoothing is torch's, for each member; the page warns of timm's loss, which raises no error."""
    net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=10)
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
    batch = mixmo.BatchMixer(net, label_smoothing=0.1, pixels=pixels)(images, labels)
    logits = torch.randn(8, 2, 10, requires_grad=True)
    each = [
        F.cross_entropy(logits[:, member], batch.targets[:, member], reduction="none", label_smoothing=0.1)
        for member in range(2)
    ]
    expected = (torch.stack(each, 1) * batch.weights).sum(1).mean()
    torch.testing.assert_close(batch.loss(logits), expected)
    (gradient,) = torch.autograd.grad(batch.loss(logits), logits)
    assert (gradient.abs().sum((0, 2)) > 0.1).all()
    if pixels is None:
        (gradient,) = torch.autograd.grad(timm.loss.LabelSmoothingCrossEntropy(0.1)(logits, batch.targets), logits)
        first, second = gradient.abs().sum((0, 2))
        assert first > 0.1 and second < 0.1 * first  # what is left of the second is smoothing, of no class


@pytest.mark.slow
def test_the_page_of_several_labels_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "multi-label.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        names = {}
        exec(compile(block, "docs/multi-label.md", "exec"), names)
        assert names["probabilities"].shape[1] == 4 and "map" in names["metrics"]
