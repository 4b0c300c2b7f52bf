"""Fast steps: the host never waits, nothing is compiled twice, and fast settings compute the same."""

import re
from pathlib import Path

import pytest
import timm
import torch
import yaml
from conftest import plan_of, write_splits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import mixmo
from mixmo import batch_mixing, checkpoints
from mixmo.config.hardware import PRECISIONS, default_precision
from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.config.settings import OptimizerSettings
from mixmo.data.batches import Augmentation
from mixmo.data.module import DataModule
from mixmo.pairing import pair
from mixmo.runs import RunFolder
from mixmo.training.fit import fit
from mixmo.training.optimizers import build_optimizer
from mixmo.training.step import Training

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
    return write_splits(tmp_path_factory.mktemp("pictures"), train=13, test=3, classes=("cat", "dog"))


def short_plan(pictures, *words):
    own = ["--data.validation=0.2", "--data.eval_batch_size=4", "--trainer.max_epochs=2"]
    return plan_of(pictures, *own, *words)


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
    fit(short_plan(pictures, *overrides), RunFolder(tmp_path / "run"))
    quiet = [found for reported, found in seen[1:] if not reported]  # the first step moves constants to the device
    assert len(quiet) >= 7 and not any(quiet), quiet
    assert all(found for reported, found in seen if reported)  # the counter does count


@pytest.mark.slow
def test_nothing_is_compiled_twice_and_the_curve_is_the_same(pictures, tmp_path, monkeypatch):
    compiled = []

    def whole_graphs(function, **options):
        compiled.append(function.__name__)
        return compile_(function, backend="aot_eager", fullgraph=True, **options)

    compile_ = torch.compile
    fit(short_plan(pictures, "--model.compile=false"), RunFolder(tmp_path / "eager"))
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", whole_graphs)
    with torch._dynamo.config.patch(error_on_recompile=True):
        fit(short_plan(pictures, "--model.compile=true"), RunFolder(tmp_path / "compiled"))
    assert compiled == ["_logits_and_loss", "_validation_logits"]
    rows = [RunFolder(tmp_path / name).read_metrics() for name in ("eager", "compiled")]
    for key in ("train_loss", "val_nll", "val_accuracy"):
        eager, other = ([float(row[key]) for row in each] for each in rows)
        assert other == pytest.approx(eager, rel=1e-3), key
    assert mixmo.load(tmp_path / "compiled").num_members == 2


@pytest.mark.slow
def test_a_frozen_network_is_compiled_once_and_once_more_when_thawed(pictures, tmp_path, monkeypatch):
    graphs, compile_ = [], torch.compile

    def noted(module, inputs):
        graphs.append(len(inputs))
        return aot_eager(module, inputs)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    start = tmp_path / "weights.pth"
    torch.save(timm.create_model("wide_resnet10_1", num_classes=2).state_dict(), start)
    words = ["--optimizer.freeze_epochs=1", f"--model.pretrained={start}", "--data.validation=0"]
    fit(short_plan(pictures, *words, "--model.compile=false"), RunFolder(tmp_path / "eager"))
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda function, **own: compile_(function, backend=noted, fullgraph=True))
    fit(short_plan(pictures, *words, "--model.compile=true"), RunFolder(tmp_path / "compiled"))
    assert len(graphs) == 2
    eager, other = (RunFolder(tmp_path / name).read_metrics() for name in ("eager", "compiled"))
    for row, wanted in zip(other, eager, strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(wanted["train_loss"]), rel=1e-3)


@pytest.mark.parametrize("progress", ["steps", "epochs"])
@pytest.mark.parametrize("end", [None, 0.0, 0.9])
def test_input_repetition_follows_the_steps(pictures, tmp_path, monkeypatch, end, progress):
    """rho goes linearly from 0.5 to its end, independently of the schedule of p."""
    drawn = []

    def noted(count, members, repetition, rho, *rest):
        drawn.append(rho)
        return pair(count, members, repetition, rho, *rest)

    monkeypatch.setattr(batch_mixing, "pair", noted)
    monkeypatch.setattr(batch_mixing, "pair_eagerly", noted)
    words = ["--data.input_repetition=0.5", f"--mixer.progress={progress}", "--data.batch_repetition=2"]
    words += [f"--data.input_repetition_end={'null' if end is None else end}"]
    fit(short_plan(pictures, *words), RunFolder(tmp_path / "run"))
    steps = 10
    assert drawn == pytest.approx([0.5 + (0 if end is None else end - 0.5) * step / steps for step in range(steps)])


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
    assert plan.settings.trainer.precision in PRECISIONS and plan.settings.model.compile is False
    assert plan.settings.data.eval_batch_size == 64
    kept = yaml.safe_load(plan.yaml)  # another machine finds its own
    assert kept["trainer"]["precision"] is kept["model"]["compile"] is kept["data"]["eval_batch_size"] is None
    assert plan.resolved == {
        "trainer": {"precision": plan.settings.trainer.precision}, "model": {"compile": False},
        "data": {"eval_batch_size": 64},
    }  # fmt: skip
    own = make_plan(load_recipe("cifar100-wrn28x10-cut"), ["--trainer.precision=32-true", "--model.compile=true"])
    assert own.settings.trainer.precision == "32-true" and own.settings.model.compile is True


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_updates_are_the_plain_ones(name):
    weights = {}
    for fused in (True, False):
        torch.manual_seed(0)
        net = mixmo.MixMo("wide_resnet10_1", 2, 5).to(memory_format=torch.channels_last)
        optimizer = build_optimizer(net, OptimizerSettings(name=name, options={"fused": fused}), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        weights[fused] = net.state_dict()
    assert all(torch.allclose(weights[True][key], tensor, atol=1e-5) for key, tensor in weights[False].items())
    assert build_optimizer(net, OptimizerSettings(name=name), lr=0.05).defaults["fused"] is True


def test_the_average_of_the_weights_is_kept_and_tested(pictures, tmp_path):
    plain, averaged = RunFolder(tmp_path / "plain"), RunFolder(tmp_path / "averaged")
    fit(short_plan(pictures), plain)
    fit(short_plan(pictures, "--optimizer.ema_decay=0.5"), averaged)
    one, other = (checkpoints.load(run.checkpoint_file())["state_dict"] for run in (plain, averaged))
    assert all(torch.equal(other[key], tensor) for key, tensor in one.items())  # training is the same
    key = "backbone.fc.heads.1.weight"
    assert not torch.equal(other[f"average.{key}"], other[f"net.{key}"])
    assert torch.equal(mixmo.load(averaged.path).heads[1].weight, other[f"average.{key}"])


def test_the_average_is_the_published_recursion(pictures, tmp_path, monkeypatch):
    """a ← d a + (1 - d) w with d = min(decay, (1 + t) / (10 + t)), from the weights after the first step."""
    weights = []
    original = Training.on_train_batch_end

    def noted(self, *arguments):
        weights.append(self.net.heads[0].weight.detach().clone())
        original(self, *arguments)

    monkeypatch.setattr(Training, "on_train_batch_end", noted)
    run = RunFolder(tmp_path / "run")
    fit(short_plan(pictures, "--optimizer.ema_decay=0.3"), run)
    expected = weights[0]
    for step, weight in enumerate(weights[1:], start=1):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(mixmo.load(run.path).heads[0].weight, expected)


def test_averaged_weights_have_batch_norm_statistics_of_their_own(pictures, tmp_path, monkeypatch):
    """They are the mean over training mixtures passed through the averaged network."""
    seen = []
    original = Training.estimate_statistics

    def noted(self):
        norm = self.average.backbone.stages[0][0].bn1
        before = norm.running_mean.clone()
        hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3)).float()))
        seen.clear()
        original(self)
        hook.remove()
        if seen:
            torch.testing.assert_close(norm.running_mean, torch.stack(seen).mean(0), atol=1e-5, rtol=1e-4)
            assert not torch.equal(norm.running_mean, before)
            done.append(len(seen))

    done = []
    monkeypatch.setattr(Training, "estimate_statistics", noted)
    fit(short_plan(pictures, "--optimizer.ema_decay=0.9"), RunFolder(tmp_path / "run"))
    assert done == [5, 5]  # once for each epoch, though validation and saving both ask for it


def test_other_normalisations_follow_the_trained_network(pictures, tmp_path):
    """EvoNorm keeps running variances, but is no batch norm of torch's."""
    run = RunFolder(tmp_path / "run")
    options = ["--model.backbone=test_efficientnet", "--model.options={norm_layer: evonormb0}", "--data.image_size=32"]
    fit(short_plan(pictures, *options, "--optimizer.ema_decay=0.5", "--trainer.max_epochs=1"), run)
    state = checkpoints.load(run.checkpoint_file())["state_dict"]
    names = [name for name in state if name.startswith("net.") and name.endswith("running_var")]
    assert names
    for name in names:
        assert torch.equal(state[name.replace("net.", "average.", 1)], state[name])


@pytest.mark.slow
def test_averaged_weights_are_no_worse_than_the_weights_themselves(tmp_path):
    """Digits, a quarter of the recipe: NLL on the test set at most 0.02 above the raw weights'."""
    run = RunFolder(tmp_path / "run")
    plan = make_plan(load_recipe("digits-cut"), ["--optimizer.ema_decay=0.999", "--trainer.max_epochs=5"])
    fit(plan, run)
    state, net = checkpoints.load(run.checkpoint_file())["state_dict"], mixmo.load(run.path)
    test, nll = DataModule(plan.settings.data, 0).test, {}
    for prefix in ("average.", "net."):
        net.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        with torch.no_grad():
            logits = net.members(Augmentation(plan.settings.data).center(test.images, torch.arange(len(test))))
        nll[prefix] = mixmo.evaluate(logits, test.labels)["nll"]
    assert nll["average."] < nll["net."] + 0.02, nll


def test_unfused_inference_sums_the_encoders_first():
    net = mixmo.MixMo("wide_resnet10_1", num_members=3, num_classes=4).eval()
    images = torch.randn(2, 3, 8, 8)
    multiply_adds = []
    for inputs in (images, images[:, None].expand(2, 3, 3, 8, 8)):
        with FlopCounterMode(display=False) as counter:
            logits = net.members(inputs) if inputs.dim() == 4 else net(inputs)
        multiply_adds.append(counter.get_total_flops() // 2)
        torch.testing.assert_close(logits, net.members(images), atol=1e-5, rtol=1e-5)
    one_encoder = 2 * 8 * 8 * 16 * 3 * 9
    assert multiply_adds[1] - multiply_adds[0] == 2 * one_encoder


def test_the_names_of_torch_that_are_not_public_are_there():
    """Found by searching the package for ``torch._`` and the like; those without their own test are checked here."""
    assert isinstance(torch.cpu._is_avx512_bf16_supported(), bool)
    assert default_precision(torch.device("cpu")) in PRECISIONS
    found = set()
    for file in Path(mixmo.__file__).parent.rglob("*.py"):
        found |= set(re.findall(r"torch(?:\.\w+)*\._\w+", file.read_text()))
    errors = {"torch._inductor", "torch._dynamo"}  # the modules of errors of compiling, by name
    mode = "torch.utils._python_dispatch"  # how torch documents to intercept operations; tests/test_seeding.py
    assert found == errors | {"torch._sample_dirichlet", "torch.cpu._is_avx512_bf16_supported", mode}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_step_on_a_gpu_waits_nowhere(monkeypatch, precision):
    """From the draws to the updated weights, in Lightning's order."""
    from mixmo.evaluation.benchmark import Benchmark, TrainingStep

    original, watched_steps = Training.optimizer_step, []

    def watched(self, *arguments, **keywords):
        torch.cuda.set_sync_debug_mode("error")
        try:
            original(self, *arguments, **keywords)
            watched_steps.append(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    step = TrainingStep(Benchmark(backbone="wide_resnet10_1", batch_size=16), 2, precision)
    step()  # the first step moves constants to the device
    monkeypatch.setattr(Training, "optimizer_step", watched)
    step()
    assert watched_steps
