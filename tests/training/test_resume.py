"""A run stopped at any step and resumed ends bit for bit like an uninterrupted one."""

import random
import signal
import time
from contextlib import suppress
from functools import partial

import pytest
import timm
import torch
from conftest import Stopping, plan_of, write_splits
from killing import Ask, differences, run_in_fork, start_or_resume
from lightning.pytorch.callbacks import Callback

import mixmo
from mixmo import checkpoints
from mixmo.errors import InputError, StoppedError, TrainingError
from mixmo.runs import RunFolder
from mixmo.training.checkpointing import SIGNALS, StopSignals
from mixmo.training.fit import fit

STREAMED = ("--data.in_memory=false", "--data.image_size=8")
WAYS = {
    "in memory": ["--pixels.kind=cutmix"],
    "streamed by workers, averaged": [*STREAMED, "--data.workers=2", "--optimizer.ema_decay=0.9"],
    "averaged": ["--optimizer.ema_decay=0.9"],
    "frozen at first": ["--optimizer.freeze_epochs=1.4", "--optimizer.ema_decay=0.9", "--model.pretrained={}.pth"],
    "sharpness-aware": ["--optimizer.sam_radius=0.05", "--trainer.gradient_clip_val=1"],
    "adamw, rho falls": ["--optimizer.name=adamw", "--data.input_repetition=0.9", "--data.input_repetition_end=0.5"],
    "rare classes": ["--data.sampler=balanced", "--objective.class_weights=[1, 2, 3]"],
    "augmented by kornia": [*STREAMED, "--data.workers=0", "--data.policy=trivialaugment"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Pictures, with pretrained weights next to them."""
    folder = write_splits(tmp_path_factory.mktemp("images"), train=16)
    torch.save(timm.create_model("wide_resnet10_1", num_classes=5).state_dict(), f"{folder}.pth")
    return folder


def three_epochs(images, *words):
    own = ["--data.batch_size=14", "--trainer.max_epochs=3", *(word.format(images) for word in words)]
    return plan_of(images, *own)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_stops_at_any_step_ends_alike(images, tmp_path, way):
    plan = three_epochs(images, *WAYS[way])
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    fit(plan, whole)
    steps = int(whole.read_metrics()[0]["step"])
    assert steps >= 4
    stops = [2, steps, steps + 1, 2 * steps + 3]
    for number, step in enumerate(stops):
        done = f"epoch {step // steps}" if step % steps == 0 else f"step {step}"
        with pytest.raises(StoppedError, match=f"stopped by SIGTERM after {done}; .* resumes it") as stopped:
            fit(plan, run, resume=number > 0, callbacks=[Ask(step)])
        assert stopped.value.code == 143
        last = checkpoints.load(run.checkpoint_file())
        assert last["global_step"] == step and checkpoints.finished_epochs(last) == step // steps
        assert len(run.read_metrics()) == step // steps
    fit(plan, run, resume=True)
    assert differences(whole, run) == []


def test_a_checkpoint_within_an_epoch_can_be_used(images, tmp_path):
    run = RunFolder(tmp_path / "run")
    with pytest.raises(StoppedError):
        fit(three_epochs(images, "--optimizer.ema_decay=0.9"), run, callbacks=[Ask(2)])
    net = mixmo.load(run.path)
    statistics = [value for key, value in net.state_dict().items() if key.endswith("running_var")]
    assert statistics and all((value != 1).any() for value in statistics)  # estimated, before it was kept


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["--trainer.checkpoint_every_steps=3"], [3, 5, 6, 9, 10]),
        (["--trainer.checkpoint_every_minutes=0.000001"], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ([], [5, 10]),
    ],
)
def test_checkpoints_are_kept_when_due(images, tmp_path, monkeypatch, words, steps):
    written, save = [], checkpoints.save

    def noted(path, content):
        written.append(content["global_step"])
        save(path, content)

    monkeypatch.setattr("mixmo.training.checkpointing.save", noted)
    run = RunFolder(tmp_path / "run")
    fit(three_epochs(images, "--trainer.max_epochs=2", *words), run)
    assert written == steps
    assert checkpoints.load(run.checkpoint_folder / "previous.ckpt")["global_step"] == steps[-2]


def test_rows_are_appended_and_cut_back(tmp_path):
    run = RunFolder(tmp_path)
    run.append_metrics({"epoch": 1, "step": 4, "seconds": 0.5, "loss": 1234567.5})
    run.append_metrics({"epoch": 2, "step": 8, "seconds": 0.5, "loss": 0.25})
    with run.metrics_file.open("a") as file:
        file.write("3,12,0.1")  # a process died here
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2]
    run.cut_metrics(1)
    assert run.metrics_file.read_text() == "epoch,step,seconds,loss\n1,4,0.5,1.23457e+06\n"
    run.append_metrics({"epoch": 2, "step": 8, "seconds": 0.5, "loss": 0.125, "val_nll": 1})
    assert run.metrics_file.read_text() == "epoch,step,seconds,loss,val_nll\n1,4,0.5,1.23457e+06,\n2,8,0.5,0.125,1\n"
    run.cut_metrics(0)
    assert run.read_metrics() == []


def test_a_second_interrupt_stops_at_once():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signals = StopSignals()
    signals.listen()
    try:
        signal.raise_signal(signal.SIGINT)
        assert signals.agree(False, 1) == (True, False)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("callbacks", [[], [Stopping(1)], [Ask(2)]])
def test_handlers_of_signals_are_left_as_they_were(images, tmp_path, callbacks):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with suppress(ZeroDivisionError, StoppedError):
        fit(three_epochs(images), RunFolder(tmp_path / "run"), callbacks=callbacks)
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.slow
def test_killed_runs_end_as_unbroken_ones(images, tmp_path):
    """Ten kills at random moments; `make torture` has a thousand."""
    plan = three_epochs(images, "--trainer.checkpoint_every_steps=2", "--trainer.max_epochs=5")
    whole, start = RunFolder(tmp_path / "whole"), time.monotonic()
    run_in_fork(partial(start_or_resume, whole, plan))
    length, rng, runs, killed = time.monotonic() - start, random.Random(0), 0, 0
    while killed < 10:
        runs += 1
        run = RunFolder(tmp_path / f"run-{runs}")
        while not run_in_fork(partial(start_or_resume, run, plan), rng.uniform(0.02, length)):
            killed += 1
        assert differences(whole, run) == []


def test_a_gradient_that_is_not_finite_names_its_step(images, tmp_path):
    class Spoil(Callback):
        def on_before_zero_grad(self, trainer, training, optimizer):
            if trainer.global_step == 3:
                next(training.net.parameters()).register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(TrainingError, match="not finite at step 3,"):
        fit(three_epochs(images), RunFolder(tmp_path / "run"), callbacks=[Spoil()])


def test_a_memory_that_is_too_small_advises_parts_of_the_batch(images, tmp_path):
    class Full(Callback):
        def on_train_batch_start(self, *_):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(InputError, match=r"out of memory with a batch of 14 .* with trainer\.accumulate: 2"):
        fit(three_epochs(images), RunFolder(tmp_path / "run"), callbacks=[Full()])
