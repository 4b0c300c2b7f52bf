"""Training in float16: losses are scaled, steps that overflow are skipped, and all else is as in float32."""

from itertools import pairwise

import pytest
import torch
from conftest import plan_of, write_splits
from killing import Ask, differences
from lightning.pytorch.callbacks import Callback
from torch.amp import GradScaler

import mixmo
from mixmo import checkpoints
from mixmo.config.hardware import default_precision
from mixmo.errors import StoppedError, TrainingError
from mixmo.runs import RunFolder
from mixmo.training import trainer
from mixmo.training.fit import fit

FLOAT16 = "--trainer.precision=16-mixed"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("images"), train=16)


def two_epochs(images, *words):
    return plan_of(images, "--data.batch_size=14", "--trainer.max_epochs=2", *words)  # ten steps


def scale_by(monkeypatch, scale):
    """Set the initial loss scale, which doubles after every third step without an overflow."""
    made = trainer.MixedPrecision

    def build(precision, device):
        return made(precision, device, GradScaler(device, init_scale=scale, growth_interval=3))

    monkeypatch.setattr(trainer, "MixedPrecision", build)


class Weights(Callback):
    """Records the weights before and after every step, and the dtypes of the first convolution's output."""

    def __init__(self):
        self.seen, self.types = [], set()

    def note(self, training):
        self.seen.append(torch.cat([each.detach().flatten() for each in training.net.parameters()]))

    def on_train_start(self, trainer, training):
        self.note(training)
        training.net.encoders[0].register_forward_hook(lambda module, _, output: self.types.add(output.dtype))

    def on_train_batch_end(self, trainer, training, *_):
        self.note(training)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--optimizer.name=adamw", "--optimizer.lr=1e-3"],
        ["--trainer.accumulate=2"],
        ["--optimizer.sam_radius=0.05"],
    ],
)
def test_it_learns_as_float32_does_with_a_clipped_gradient(images, tmp_path, words):
    """The norm of 0.1 applies to the unscaled gradient."""
    moved = {}
    for precision in ("32-true", "16-mixed"):
        noted, own = Weights(), [f"--trainer.precision={precision}", "--trainer.gradient_clip_val=0.1", *words]
        fit(two_epochs(images, *own), RunFolder(tmp_path / precision), callbacks=[noted])
        assert noted.types == {torch.float16 if precision == "16-mixed" else torch.float32}
        moved[precision] = noted.seen[4] - noted.seen[0]
    cosine = torch.cosine_similarity(*moved.values(), dim=0)
    ratio = moved["16-mixed"].norm() / moved["32-true"].norm()
    assert cosine > 0.95 and ratio == pytest.approx(1, rel=0.1)


class Momentum(Callback):
    """Records the size of the momentum after every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        state = trainer.optimizers[0].state
        self.seen.append(max(float(each["momentum_buffer"].abs().max()) for each in state.values()))


@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_a_step_that_overflows_is_skipped_whole(images, tmp_path, monkeypatch, name):
    """Weights are unchanged, no momentum is made from uninitialised memory, and the run continues."""
    scale_by(monkeypatch, 2.0**18)
    weights, momentum, run = Weights(), Momentum(), RunFolder(tmp_path / "run")
    fit(two_epochs(images, FLOAT16, f"--optimizer.name={name}"), run, callbacks=[weights, momentum])
    steps = [not torch.equal(*pair) for pair in pairwise(weights.seen)]
    assert len(steps) == 10 and not steps[0] and steps[1]
    assert momentum.seen[0] == 0 < momentum.seen[1]
    assert checkpoints.load(run.checkpoint_file())["MixedPrecision"]["scale"] < 2.0**18
    assert mixmo.load(run.path)(torch.zeros(1, 3, 8, 8)).isfinite().all()


def test_it_resumes_bit_for_bit_with_its_scale(images, tmp_path, monkeypatch):
    scale_by(monkeypatch, 2.0**18)
    plan = two_epochs(images, FLOAT16, "--optimizer.ema_decay=0.9", "--trainer.gradient_clip_val=1")
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    fit(plan, whole)
    for number, step in enumerate((2, 6)):
        with pytest.raises(StoppedError):
            fit(plan, run, resume=number > 0, callbacks=[Ask(step)])
    fit(plan, run, resume=True)
    assert differences(whole, run) == []


def test_a_gradient_that_overflows_at_every_scale_stops_the_run(images, tmp_path, monkeypatch):
    scale_by(monkeypatch, 8.0)

    class Spoil(Callback):
        def on_train_start(self, trainer, training):
            next(training.net.parameters()).register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(TrainingError, match=r"not finite at step 3, .*trainer.precision 32-true"):
        fit(two_epochs(images, FLOAT16), RunFolder(tmp_path / "run"), callbacks=[Spoil()])


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((6, 1), "32-true"), ((7, 0), "16-mixed"), ((7, 5), "16-mixed"), ((8, 0), "bf16-mixed")],
)
def test_a_gpu_gets_the_precision_it_has_units_for(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert default_precision(torch.device("cuda")) == precision
