"""A run on several processes is the same run; if one dies, the others stop."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest
import timm
import torch
from conftest import plan_of, write_splits
from killing import Ask, fit_or_resume, rows
from lightning.pytorch.callbacks import Callback
from torch import nn

import mixmo
from mixmo import checkpoints
from mixmo.errors import InputError
from mixmo.evaluation.evaluate import evaluate
from mixmo.evaluation.inference import TrainedRun
from mixmo.evaluation.predictions import predict
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

WAYS = {
    "cut": [],
    "pixels mixed": ["--pixels.kind=cutmix"],
    "averaged": ["--optimizer.ema_decay=0.9"],
    "streamed": ["--data.in_memory=false", "--data.workers=1"],
    "in two parts": ["--trainer.accumulate=2"],
    "frozen at first": ["--optimizer.freeze_epochs=1", "--model.pretrained={}.pth"],
    "sharpness-aware": ["--optimizer.sam_radius=0.05", "--trainer.gradient_clip_val=0.5"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Pictures, with pretrained weights next to them."""
    folder = write_splits(tmp_path_factory.mktemp("images"), train=32)
    torch.save(timm.create_model("test_convnext", num_classes=5).state_dict(), f"{folder}.pth")
    return folder


def two_epochs(images, *words):
    """Without batch norms by default; with 23 validation images, which no number of ranks divides evenly."""
    own = ["--data.batch_size=16", "--data.image_size=32", "--data.validation=0.24", "--trainer.max_epochs=2"]
    return plan_of(images, *own, "--model.backbone=test_convnext", "--trainer.precision=32-true",
                   *(word.format(images) for word in words))  # fmt: skip


class FirstGradient(Callback):
    """Keeps the gradient of the first step."""

    def __init__(self, file):
        self.file = file

    def on_before_optimizer_step(self, trainer, training, optimizer):
        if trainer.is_global_zero and not self.file.exists():
            learning = {name: each.grad for name, each in training.net.named_parameters() if each.grad is not None}
            torch.save(learning, self.file)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_in_ranks(count, work, error=None):
    """Run a function in several processes, started like Lightning's launcher does; return their exit codes."""
    port, children = str(free_port()), []
    for rank in range(count):
        child = os.fork()
        if not child:
            os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ["WORLD_SIZE"] = str(count)
            sys.stderr = os.fdopen(os.open(error or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "w")
            try:
                work()
                os._exit(0)
            except BaseException as problem:
                print(f"rank {rank}: {problem}", file=sys.stderr, flush=True)
                os._exit(3)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def figures(run):
    return [{key: float(text) for key, text in row.items()} for row in rows(run)]


def furthest(one, other):
    """Return the largest difference between the weights of two runs."""
    states = [checkpoints.load(run.checkpoint_file())["state_dict"] for run in (one, other)]
    assert states[0].keys() == states[1].keys()
    return max(float((states[0][name].double() - states[1][name].double()).abs().max()) for name in states[0])


@pytest.mark.parametrize(("way", "counts"), [(way, (2, 4) if way in ("cut", "in two parts") else (2,)) for way in WAYS])
def test_a_run_on_several_ranks_is_the_same_run(images, tmp_path, way, counts):
    alone = RunFolder(tmp_path / "alone")
    fit(two_epochs(images, *WAYS[way]), alone, callbacks=[FirstGradient(tmp_path / "alone.pt")])
    expected = torch.load(tmp_path / "alone.pt")
    for count in counts:
        run, kept = RunFolder(tmp_path / f"on-{count}"), tmp_path / f"on-{count}.pt"
        plan = two_epochs(images, f"--trainer.devices={count}", *WAYS[way])
        assert run_in_ranks(count, partial(fit, plan, run, callbacks=[FirstGradient(kept)])) == [0] * count
        found = torch.load(kept)
        size = torch.cat([each.flatten() for each in expected.values()]).norm()
        apart = torch.cat([(found[name] - expected[name]).flatten() for name in expected]).norm()
        assert size > 0 and apart / size < 1e-5
        assert furthest(alone, run) < 1e-4
        for row, wanted in zip(figures(run), figures(alone), strict=True):
            assert row == pytest.approx(wanted, rel=1e-4)


def test_a_programs_own_transforms_draw_alike_on_several_ranks(tmp_path):
    """The draws of a Dataset's transforms do not depend on the rank that requests the image."""
    alone, run, error = RunFolder(tmp_path / "alone"), RunFolder(tmp_path / "run"), tmp_path / "error"
    own = {"model": "test_convnext", "size": 32, "precision": "32-true", "epochs": 2, "batch_size": 16}
    fit_or_resume(alone.path, **own)
    codes = run_in_ranks(2, partial(fit_or_resume, run.path, devices=2, **own), error)
    assert codes == [0, 0], error.read_text()
    assert furthest(alone, run) < 1e-4
    for row, wanted in zip(figures(run), figures(alone), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)


def test_parts_of_a_batch_are_the_batch(images, tmp_path):
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    fit(two_epochs(images), whole)
    fit(two_epochs(images, "--trainer.accumulate=4"), parts)
    assert 0 <= furthest(whole, parts) < 1e-4
    assert figures(parts)[-1] == pytest.approx(figures(whole)[-1], rel=1e-4)


def test_batch_norms_of_ranks_hold_one_mean(images, tmp_path):
    """Validation on ranks with different statistics would score different networks."""
    run, words = RunFolder(tmp_path / "run"), ["--model.backbone=wide_resnet10_1", "--data.image_size=8"]
    plan = two_epochs(images, "--trainer.devices=2", *words)
    assert run_in_ranks(2, partial(fit, plan, run)) == [0, 0]
    found = predict(TrainedRun(run), "validation")
    accuracy = evaluate(found.logits, found.targets)["accuracy"]
    assert float(run.read_metrics()[-1]["val_accuracy"]) == pytest.approx(accuracy, abs=1e-5)


class Evaluate(Callback):
    """Writes the metrics of given predictions at the end of training, while the ranks are a group."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, *_):
        logits = torch.randn(50, 2, 4, generator=torch.Generator().manual_seed(0))
        found = evaluate(logits, torch.arange(50) % 4)
        (self.folder / f"rank-{trainer.global_rank}").write_text(json.dumps(found))


def test_ranks_save_at_every_step_due_and_evaluate_alone(images, tmp_path, monkeypatch):
    steps, save = tmp_path / "steps", checkpoints.save

    def save_and_note(path, content):
        with steps.open("a") as file:
            file.write(f"{content['global_step']} ")
        save(path, content)

    monkeypatch.setattr("mixmo.training.checkpointing.save", save_and_note)
    plan = two_epochs(images, "--trainer.devices=2", "--trainer.checkpoint_every_steps=3", "--trainer.max_epochs=1")
    assert run_in_ranks(2, partial(fit, plan, RunFolder(tmp_path / "run"), callbacks=[Evaluate(tmp_path)])) == [0, 0]
    *due, last = map(int, steps.read_text().split())
    assert due == list(range(3, last, 3)) and len(due) > 1
    Evaluate(tmp_path).on_train_end(SimpleNamespace(global_rank="alone"))
    assert len({(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1, "alone")}) == 1


def test_a_run_resumes_on_other_numbers_of_ranks(images, tmp_path):
    """One rank is asked to stop, all stop at the same step; the run is resumed on four ranks, then on one."""
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    fit(two_epochs(images), whole)
    plan, error = two_epochs(images, "--trainer.devices=2"), tmp_path / "error"
    assert run_in_ranks(2, partial(fit, plan, run, callbacks=[Ask(4, rank=1)]), error) == [3, 3]
    steps = int(whole.read_metrics()[0]["step"])
    assert set(re.findall(r"stopped by SIGTERM after (.*?);", error.read_text())) == {"step 8"} and steps > 8
    four = two_epochs(images, "--trainer.devices=4", "--trainer.checkpoint_every_steps=16")
    assert run_in_ranks(4, partial(fit, four, run, resume=True, callbacks=[Ask(16)]), error) == [3] * 4
    assert checkpoints.load(run.checkpoint_file())["global_step"] == 16
    fit(two_epochs(images), run, resume=True)
    assert furthest(whole, run) < 1e-4
    for row, wanted in zip(figures(run), figures(whole), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)


class Die(Callback):
    """Ends a rank silently, or with an error."""

    def __init__(self, error=None):
        self.error = error

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 3 and trainer.global_rank == 1:
            if self.error:
                raise self.error
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("error", [None, InputError("image a.png is damaged")])
def test_a_rank_that_ends_stops_the_others(images, tmp_path, error):
    run, output, start = RunFolder(tmp_path / "run"), tmp_path / "output", time.monotonic()
    plan = two_epochs(images, "--trainer.devices=3", "--data.batch_size=24")
    codes = run_in_ranks(3, partial(fit, plan, run, callbacks=[Die(error)]), output)
    assert time.monotonic() - start < 60
    assert codes == [3, 3 if error else -signal.SIGKILL, 3]
    problem = "another process of the run died or stopped with an error, as its own output says; "
    assert output.read_text().count(f"{problem}`mixmo fit {run.path}` resumes it.") == 2


class Unused(nn.Module):
    """A network with a layer that its output does not depend on."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.unused = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))


def test_an_unused_layer_is_explained_on_several_ranks(images, tmp_path):
    output, net = tmp_path / "output", mixmo.MixMo(Unused(), 2, stem="stem", head="head")
    plan = two_epochs(images, "--trainer.devices=2")
    codes = run_in_ranks(2, partial(fit, plan, RunFolder(tmp_path / "run"), module=net), output)
    assert codes == [3, 3]
    assert output.read_text().count("the loss depends on only some of the network's weights") == 2


@pytest.mark.slow
@pytest.mark.parametrize("by", ["torchrun", "mixmo"])
def test_the_command_line_starts_ranks(images, tmp_path, by):
    """With torchrun, which sets their number, and without it."""
    run = tmp_path / "run"
    words = ["fit", "digits-cut", f"--data.name=folder:{images}", "--data.channels=3", "--data.batch_size=16"]
    words += ["--data.image_size=null", "--trainer.max_epochs=1", "--data.padding=1", f"--run={run}"]
    if by == "torchrun":
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--", "mixmo"]
    else:
        start, words = ["-m", "mixmo"], [*words, "--trainer.devices=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *start, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is trained; `mixmo test") == 1
    assert len(RunFolder(run).read_metrics()) == 1 and RunFolder(run).finished_epochs() == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--trainer.devices=3"], r"batch_size is 16, which 3 device\(s\) in 1 part\(s\) each cannot share evenly"),
        (["--trainer.accumulate=5"], r"1 device\(s\) in 5 part\(s\) each cannot share evenly; use a multiple of 5"),
        (["--trainer.devices=16"], "has 8 distinct images .* 16 devices cannot decode evenly"),
        (["--trainer.sync_batchnorm=true"], "SyncBatchNorm needs GPUs"),
        (["--trainer.devices=0"], "trainer.devices is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_training(images, tmp_path, words, problem):
    with pytest.raises(InputError, match=problem):
        fit(two_epochs(images, *words), RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
