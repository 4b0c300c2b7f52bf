"""Kill training processes, and compare the files of runs."""

import os
import random
import signal
import time
from contextlib import suppress

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import Dataset

import mixmo
from mixmo.config.plan import make_plan
from mixmo.files import PARTIAL
from mixmo.training.fit import fit

TIMES = {"seconds", "images_per_second"}


class Ask(Callback):
    """Sends a signal to the process, or one rank, during a step, which is still completed."""

    def __init__(self, step, number=signal.SIGTERM, rank=None):
        self.step, self.number, self.rank = step, number, rank

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step - 1 and self.rank in (None, trainer.global_rank):
            signal.raise_signal(self.number)


def run_in_fork(work, seconds=None, may_die=False):
    """Run a function in a fork, killed after some seconds or by itself; return whether it finished."""
    child = os.fork()
    if not child:
        os.setpgid(0, 0)  # workers are killed with it
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    with suppress(OSError):  # the child may have done so, and may have ended
        os.setpgid(child, child)
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG if deadline else 0)
        if done:
            if may_die and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                return False
            assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
            return True
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.002)


def start_or_resume(run, plan):
    """Start or resume the run, as a user would."""
    if run.config_file.is_file():
        fit(make_plan(run.resumed_config()), run, resume=True)
    else:
        fit(plan, run)


class Moved(Dataset):
    """A user's Dataset, shifted at random by all three global generators."""

    def __init__(self, count, size=8, moved=True):
        self.images = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(count))
        self.targets, self.moved = [index % 3 for index in range(count)], moved

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        if self.moved:
            image = image.roll((random.randint(-1, 1), int(torch.randint(-1, 2, ()))), (1, 2))
            image = image + 0.1 * float(np.random.rand())  # noqa: NPY002
        return image, self.targets[index]


def fit_or_resume(folder, model="wide_resnet10_1", size=8, **settings):
    """Start or resume a run on :class:`Moved` with ``mixmo.fit``."""
    own = {"num_members": 2, "epochs": 4, "batch_size": 8, "batch_repetition": 2, "lr": 0.05, "workers": 0}
    own |= {"checkpoint_every_steps": 2, "input_repetition": 0.5, "progress": False}
    data = {"train": Moved(48, size), "val": Moved(21, size, moved=False)}
    mixmo.fit(model, **data, out=folder, resume=True, **own | settings)


def flat(value, name=""):
    if isinstance(value, dict | list | tuple):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(each, f"{name}/{key}")
    else:
        yield name, value


def differences(one, other, names=("last", "best")):
    """Return the differences between two runs' folders, except times."""
    found = [] if files(one) == files(other) else [f"files {files(one) ^ files(other)}"]
    for name in names:
        contents = [
            dict(flat(torch.load(run.checkpoint_file("last").with_name(f"{name}.ckpt"), weights_only=True)))
            for run in (one, other)
        ]
        keys = contents[0].keys() | contents[1].keys()
        found += [f"{name}{key}" for key in keys if not same(*(content.get(key) for content in contents))]
    return found + ([] if rows(one) == rows(other) else ["metrics.csv"])


def rows(run):
    """Return the rows of metrics as written, without times."""
    return [{key: text for key, text in row.items() if key not in TIMES} for row in run._read_rows()]


def files(run):
    """Return the files of a run, except temporary files of evaluation, which may stay for an hour."""
    found = {str(file.relative_to(run.path)) for file in run.path.rglob("*")}
    return {name for name in found if not (name.startswith("predictions/") and name.endswith(PARTIAL))}


def same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
