"""Killing training processes, and comparing what runs leave behind."""

import os
import signal
import time

import torch
from lightning.pytorch.callbacks import Callback

from mixmo.config.plan import make_plan
from mixmo.training.fit import fit

TIMES = {"seconds", "images_per_second"}


class Ask(Callback):
    """Sends the process, or one rank, a signal in a step, which that step still ends after."""

    def __init__(self, step, number=signal.SIGTERM, rank=None):
        self.step, self.number, self.rank = step, number, rank

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step - 1 and self.rank in (None, trainer.global_rank):
            signal.raise_signal(self.number)


def in_a_process_of_its_own(work, seconds=None, may_die=False):
    """Run a function in a fork, killed after so many seconds or by itself; return whether it came to its end."""
    child = os.fork()
    if not child:
        os.setsid()  # workers are killed with it
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
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


def go_on(run, plan):
    """Start the run, or go on with it, as a user would."""
    if run.config_file.is_file():
        fit(make_plan(run.resumed_config()), run, resume=True)
    else:
        fit(plan, run)


def flat(value, name=""):
    if isinstance(value, dict | list | tuple):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(each, f"{name}/{key}")
    else:
        yield name, value


def differences(one, other, names=("last", "best")):
    """Return what differs between two runs' folders, but for times."""
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
    """Return the rows of metrics as they are written, but for times."""
    return [{key: text for key, text in row.items() if key not in TIMES} for row in run.read_metrics()]


def files(run):
    return {str(file.relative_to(run.path)) for file in run.path.rglob("*")}


def same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
