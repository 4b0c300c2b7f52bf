"""Weights files of other programs initialise the network that they were saved from."""

from argparse import Namespace
from functools import partial

import lightning as L
import numpy as np
import pytest
import timm
import torch
from timm.layers import StdConv2d
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import mixmo
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.errors import InputError
from mixmo.models.convolutions import effective_weight
from mixmo.models.initialization import add_noise
from mixmo.models.paper import WideResNet
from mixmo.training.initial_weights import init_from_pretrained

WEIGHTS = timm.create_model("wide_resnet10_1", num_classes=3).state_dict()


class Theirs(L.LightningModule):
    """A user's LightningModule around the backbone, with a loss that has weights, and an average."""

    def __init__(self, rate, backbone, averaged=None):
        super().__init__()
        self.save_hyperparameters(ignore=["backbone", "averaged"])
        self.loss = nn.CrossEntropyLoss(torch.ones(3))
        self.backbone, self.ema_model = backbone, averaged

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def by_timm(net, file, average=True):
    """Save a checkpoint as timm's train.py does, with arguments, optimiser and average."""
    other = ModelEmaV3(net) if average else None
    if other is not None:
        net.load_state_dict({name: torch.zeros_like(each) for name, each in WEIGHTS.items()})
    arguments = Namespace(model="wide_resnet10_1", betas=(0.9, 0.99), inner=Namespace(lr=0.1))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    saver = CheckpointSaver(net, optimizer, arguments, other, checkpoint_dir=str(file.parent), max_history=1)
    saver.save_checkpoint(3, metric=71.5)
    (file.parent / "last.pth.tar").rename(file)


def by_lightning(net, file, averaged=None):
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(Theirs(0.1, net, averaged))
    trainer.save_checkpoint(file)


def by_lightning_with_average(net, file):
    averaged = AveragedModel(net)
    for weight in net.parameters():
        weight.data.zero_()
    by_lightning(net, file, averaged)


def by_ddp(net, file):
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        torch.save(DistributedDataParallel(net).state_dict(), file)
    finally:
        distributed.destroy_process_group()


WRITERS = {
    "weights alone": lambda net, file: torch.save(net.state_dict(), file),
    "timm": partial(by_timm, average=False),
    "timm, averaged": by_timm,
    "DDP": by_ddp,
    "DDP of a compiled network": lambda net, file: by_ddp(torch.compile(net), file),
    "torch.compile": lambda net, file: torch.save(torch.compile(net).state_dict(), file),
    "Lightning": by_lightning,
    "Lightning, averaged": by_lightning_with_average,
    "AveragedModel": lambda net, file: torch.save(AveragedModel(net).state_dict(), file),
    "tutorials": lambda net, file: torch.save({"epoch": 3, "model_state_dict": net.state_dict(), "loss": 0.1}, file),
    "a score of NumPy's": lambda net, file: torch.save({"net": net.state_dict(), "best": np.float64(0.9)}, file),
    "nested": lambda net, file: torch.save({"model": {"state_dict": {"model": net.state_dict()}}}, file),
    "a program's own names": lambda net, file: torch.save(nn.ModuleDict({"student": net}).state_dict(), file),
}
TAKEN = {"timm, averaged": "taken from state_dict_ema, not from state_dict.",
         "Lightning, averaged": "taken from state_dict/ema_model.module., not from state_dict/backbone.."}  # fmt: skip


def started(file):
    """Return the single network initialised from a file."""
    words = ["--model.backbone=wide_resnet10_1", "--data.channels=3", f"--model.pretrained={file}"]
    return init_from_pretrained(make_plan(load_recipe("digits-single"), words).settings, list("abc")).eval()


@pytest.mark.parametrize("way", WRITERS)
def test_checkpoints_of_other_programs_start_the_same_network(tmp_path, caplog, way):
    caplog.set_level("INFO", "mixmo")
    net, file = timm.create_model("wide_resnet10_1", num_classes=3), tmp_path / "theirs.pth.tar"
    net.load_state_dict(WEIGHTS)
    WRITERS[way](net, file)
    if way in TAKEN:  # the weights that are not averaged are zero
        net.load_state_dict(WEIGHTS)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(started(file)(images), net.eval()(images), atol=1e-5, rtol=1e-5)
    taken = [each.message.partition(": weights ")[2] for each in caplog.records if "weights taken" in each.message]
    assert taken == ([TAKEN[way]] if way in TAKEN else [])


def test_weights_without_a_classifier_start_the_features(tmp_path, caplog):
    caplog.set_level("INFO", "mixmo")
    torch.save({name: tensor for name, tensor in WEIGHTS.items() if not name.startswith("fc.")}, tmp_path / "trunk.pth")
    net, backbone = started(tmp_path / "trunk.pth"), timm.create_model("wide_resnet10_1", num_classes=3).eval()
    backbone.load_state_dict(WEIGHTS)
    images, seen = torch.randn(2, 3, 8, 8), []
    net.classifiers[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    assert net(images).shape == (2, 3) and "has no classifier; the heads are drawn" in caplog.text
    torch.testing.assert_close(seen[0], backbone.forward_head(backbone.forward_features(images), pre_logits=True))


def test_a_checkpoint_that_contains_itself_is_read(tmp_path):
    content = {"model": dict(WEIGHTS)}
    content["itself"] = content
    torch.save(content, tmp_path / "file.pth")
    assert torch.equal(started(tmp_path / "file.pth").heads[0].weight, WEIGHTS["fc.weight"])


def test_weights_of_another_network_are_named(tmp_path):
    torch.save({"state_dict": timm.create_model("test_vit").state_dict()}, tmp_path / "file.pth")
    with pytest.raises(InputError) as refused:
        started(tmp_path / "file.pth")
    assert "it has cls_token, pos_embed, patch_embed.proj.weight, not conv_stem.weight, stages.0.0." in str(
        refused.value
    )


def test_noise_sums_to_zero_and_is_as_large_as_said():
    torch.manual_seed(0)
    trained = WideResNet(10, 1, num_classes=50)
    parts = {"stem": "conv_stem", "head": "fc"}
    net = mixmo.MixMo(trained, 3, trained=True, noise=0.5, **parts)
    for modules, own, scale in ((net.encoders, trained.conv_stem, 1 / 3), (net.heads, trained.fc, 1.0)):
        weights = torch.stack([module.weight for module in modules])
        assert torch.allclose(weights.mean(0), own.weight * scale, atol=1e-6)
        spread = weights.std(0, correction=1).square().mean().sqrt() / (own.weight * scale).std()
        assert spread.item() == pytest.approx(0.5, rel=0.1)


def test_noise_on_standardised_weights():
    """Those of NFNets, with a gain, sum to the trained stem's; without one (BiT) they cannot."""
    torch.manual_seed(0)
    trained = timm.create_model("test_nfnet", num_classes=5).eval()
    images = torch.randn(4, 3, 64, 64)
    for members in (2, 3):
        net = mixmo.MixMo(trained, members, trained=True, noise=1.0).eval()
        with torch.no_grad():
            torch.testing.assert_close(net(images), trained(images), rtol=1e-3, atol=1e-3)
        first, second, *_ = (effective_weight(encoder) for encoder in net.encoders)
        assert (first - second).std() > 0.5 * first.std()
    with pytest.raises(InputError, match=r"noise is 0.5, but the stem standardises its weights \(StdConv2d\)"):
        add_noise([StdConv2d(3, 8, 3) for _ in range(2)], 0.5)
