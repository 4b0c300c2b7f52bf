"""Speed without surprises: the host never waits, nothing is compiled twice, fast settings compute the same."""

import functools
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_images
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import mixmo
from mixmo.fitting import fit
from mixmo.hardware import PRECISIONS
from mixmo.optimizers import build_optimizer
from mixmo.plans import make_plan
from mixmo.recipes import load_recipe
from mixmo.runs import Run
from mixmo.training import Training

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import slim

WAITING = {
    "aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2",
    "aten::bincount", "aten::repeat_interleave", "aten::lift_fresh", "aten::index_put_", "aten::_assert_async",
}  # fmt: skip
"""Operations for which a GPU's host waits, or that bring data from it (``lift_fresh`` is ``torch.tensor``)."""


class Waits(TorchDispatchMode):
    """Counts the operations for which the host would wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function._schema.name
        if name in WAITING:
            self.found.append(name)
        return function(*arguments, **(options or {}))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """21 training and 5 validation pictures: with U = 4 and evaluation in fours there is an odd last batch."""
    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder / "train", classes=("cat", "dog"), count=13)
    write_images(folder / "test", classes=("cat", "dog"), count=3, seed=1)
    return folder


def plan_of(pictures, *overrides):
    data = [f"--data.name=folder:{pictures}", "--data.batch_size=8", "--data.padding=1", "--data.image_size=null"]
    data += ["--data.channels=3", "--data.validation=0.2", "--data.eval_batch_size=4", "--trainer.max_epochs=2"]
    return make_plan(load_recipe("quickstart"), [*data, *overrides])


@pytest.mark.parametrize("pixels", ["none", "cutmix"])
@pytest.mark.parametrize("kind", ["cut", "linear"])
@pytest.mark.parametrize("members", [1, 3])
def test_the_host_waits_only_to_report(pictures, tmp_path, monkeypatch, pixels, kind, members):
    seen = []
    original = Training.training_step

    def counted(self, batch, batch_idx):
        before = self.reports
        with Waits() as waits:
            loss = original(self, batch, batch_idx)
        seen.append((self.reports > before, waits.found))
        return loss

    monkeypatch.setattr(Training, "training_step", counted)
    overrides = [f"--pixels.kind={pixels}", f"--mixer.kind={kind}", f"--model.num_members={members}"]
    fit(plan_of(pictures, *overrides), Run(tmp_path / "run"))
    quiet = [found for reported, found in seen[1:] if not reported]  # the first step moves constants to the device
    assert len(quiet) >= 7 and not any(quiet), quiet
    assert all(found for reported, found in seen if reported)  # the counter does count


def test_nothing_is_compiled_twice_and_the_curve_is_the_same(pictures, tmp_path, monkeypatch):
    compiled = []

    def whole_graphs(function, **options):
        compiled.append(function.__name__)
        return compile_(function, backend="aot_eager", fullgraph=True, **options)

    compile_ = torch.compile
    fit(plan_of(pictures, "--model.compile=false"), Run(tmp_path / "eager"))
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", whole_graphs)
    with torch._dynamo.config.patch(error_on_recompile=True):
        fit(plan_of(pictures, "--model.compile=true"), Run(tmp_path / "compiled"))
    assert compiled == ["_logits_and_loss", "forward"]
    rows = [Run(tmp_path / name).read_metrics() for name in ("eager", "compiled")]
    for key in ("train_loss", "val_nll", "val_accuracy"):
        eager, other = ([float(row[key]) for row in each] for each in rows)
        assert other == pytest.approx(eager, rel=1e-3), key
    assert mixmo.load(tmp_path / "compiled").num_members == 2


@torch._dynamo.config.patch(error_on_recompile=True)
def test_a_second_mask_layout_would_be_noticed():
    """``error_on_recompile`` does raise, so that the test above can fail."""
    torch._dynamo.reset()
    net = torch.compile(mixmo.MixMo("wide_resnet10_1", 2, 5).forward, backend="aot_eager", dynamic=False)
    inputs = torch.zeros(2, 2, 3, 8, 8)
    net(inputs, torch.full((2, 2, 1, 8, 8), 0.5))
    with pytest.raises(torch._dynamo.exc.RecompileError):
        net(inputs, torch.full((2, 2, 16, 8, 8), 0.5))


def test_what_a_recipe_leaves_open_follows_from_the_device():
    plan = make_plan(load_recipe("cifar100-wrn28x10-cut"), ["--trainer.accelerator=cpu"])
    assert plan.trainer["precision"] in PRECISIONS and plan.settings.model.compile is False
    assert plan.settings.data.eval_batch_size == 64
    assert "compile: false" in plan.yaml and "eval_batch_size: 64" in plan.yaml  # the run's folder says what was taken
    own = make_plan(load_recipe("cifar100-wrn28x10-cut"), ["--trainer.precision=32-true", "--model.compile=true"])
    assert own.trainer["precision"] == "32-true" and own.settings.model.compile is True


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_updates_are_the_plain_ones(name):
    weights = {}
    for fused in (True, False):
        torch.manual_seed(0)
        net = mixmo.MixMo("wide_resnet10_1", 2, 5).to(memory_format=torch.channels_last)
        optimizer = build_optimizer(net, name, lr=0.05, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        weights[fused] = net.state_dict()
    assert all(torch.allclose(weights[True][key], tensor, atol=1e-5) for key, tensor in weights[False].items())
    assert build_optimizer(net, name).defaults["fused"] is True


def test_the_average_of_the_weights_is_kept_and_tested(pictures, tmp_path):
    plain, averaged = Run(tmp_path / "plain"), Run(tmp_path / "averaged")
    fit(plan_of(pictures), plain)
    fit(plan_of(pictures, "--optimizer.average=0.5"), averaged)
    one, other = (torch.load(run.checkpoint_file(), weights_only=True) for run in (plain, averaged))
    trained = other["trained_state_dict"]
    assert all(torch.equal(trained[key], tensor) for key, tensor in one["state_dict"].items())  # training is the same
    key = "net.backbone.fc.heads.1.weight"
    assert not torch.equal(other["state_dict"][key], trained[key])
    assert torch.equal(mixmo.load(averaged.path).heads[1].weight, other["state_dict"][key])


def test_unfused_inference_sums_the_encoders_first():
    net = mixmo.MixMo("wide_resnet10_1", num_members=3, num_classes=4).eval()
    images = torch.randn(2, 3, 8, 8)
    multiply_adds = []
    for inputs in (images, images[:, None].expand(2, 3, 3, 8, 8)):
        with FlopCounterMode(display=False) as counter:
            logits = net(inputs)
        multiply_adds.append(counter.get_total_flops() // 2)
        torch.testing.assert_close(logits, net(images), atol=1e-5, rtol=1e-5)
    one_encoder = 2 * 8 * 8 * 16 * 3 * 9
    assert multiply_adds[1] - multiply_adds[0] == 2 * one_encoder


@pytest.mark.parametrize("momentum", [True, False])
def test_a_slim_state_comes_back(tmp_path, momentum):
    net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=4).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(net)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    checkpoint = {"state_dict": net.state_dict(), "optimizer_states": [optimizer.state_dict()], "epoch": 3, "x": None}
    slim.save(tmp_path / "state", checkpoint, {"curve": [1]}, momentum)
    found, about = slim.load(tmp_path / "state")
    assert about == {"curve": [1]} and (found["epoch"], found["x"]) == (3, None)
    assert found["optimizer_states"][0]["param_groups"] == optimizer.state_dict()["param_groups"]
    for name, original in net.state_dict().items():
        expected = original.bfloat16().float() if original.dim() > 1 else original
        assert torch.equal(found["state_dict"][name], expected), name
        assert found["state_dict"][name].stride() == original.stride()
    for index, state in optimizer.state_dict()["state"].items():
        original, kept = state["momentum_buffer"], found["optimizer_states"][0]["state"][index]["momentum_buffer"]
        assert kept.stride() == original.stride()
        torch.testing.assert_close(kept, original if momentum else torch.zeros_like(original), atol=0, rtol=1 / 256)
    fresh = build_optimizer(net)
    fresh.load_state_dict(found["optimizer_states"][0])
    fresh.step()  # the layout is what fused updates need


def test_a_slim_state_is_small_whole_and_replaced(tmp_path):
    net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=4)
    size = slim.save(tmp_path / "state", {"state_dict": net.state_dict()}, {"step": 7}, part_bytes=20_000)
    weights = sum(tensor.numel() for tensor in net.state_dict().values())
    assert size < 1.7 * weights + 40_000  # under two bytes for a weight, and what names and batch norms take
    parts = sorted((tmp_path / "state").glob("*.part"))
    assert len(parts) > 1 and max(part.stat().st_size for part in parts) <= 20_000
    slim.save(tmp_path / "state", {"state_dict": net.state_dict()}, {"step": 8}, part_bytes=50_000)
    assert slim.load(tmp_path / "state")[1] == {"step": 8}
    manifest = json.loads((tmp_path / "state" / "state.json").read_text())
    assert {part["name"] for part in manifest["parts"]} == {p.name for p in (tmp_path / "state").glob("*.part")}
    (tmp_path / "state" / manifest["parts"][0]["name"]).write_bytes(b"broken")
    with pytest.raises(ValueError, match="is damaged"):
        slim.load(tmp_path / "state")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_a_gpu_waits_nowhere():
    from mixmo.benchmarking import Benchmark, TrainingStep

    step = TrainingStep(Benchmark(backbone="wide_resnet10_1", batch_size=16), 2, input_path=True)
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        functools.reduce(lambda _, __: step(), range(3), None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
