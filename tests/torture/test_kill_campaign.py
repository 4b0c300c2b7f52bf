"""Runs that are killed at random moments, and go on, end as runs that were not: every file of theirs."""

import os
import random
import signal
import time
from functools import partial

import pytest
import torch
from conftest import write_images

from mixmo.config.plan import make_plan
from mixmo.config.recipes import load_recipe
from mixmo.runs import Run
from mixmo.training.fit import fit

KILLS = 25
STREAMED = ["--data.in_memory=false", "--data.workers=2", "--data.image_size=8"]
WAYS = {
    "in memory": ["--data.image_size=null"],
    "streamed": STREAMED,
    "averaged": ["--data.image_size=null", "--optimizer.ema_decay=0.9"],
    "streamed and averaged": [*STREAMED, "--optimizer.ema_decay=0.9"],
}
TIMES = {"seconds", "images_per_second"}


def in_a_process_of_its_own(work, seconds=None):
    """Run a function in a fork, killed after so many seconds; return whether it came to its end."""
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


def differences(one, other):
    """Return what differs between two runs' folders, but for times."""
    found = [] if files(one) == files(other) else [f"files {files(one) ^ files(other)}"]
    for name in ("last", "previous", "best"):
        contents = [
            dict(flat(torch.load(run.checkpoint_file("last").with_name(f"{name}.ckpt"), weights_only=True)))
            for run in (one, other)
        ]
        keys = contents[0].keys() | contents[1].keys()
        found += [f"{name}{key}" for key in keys if not same(*(content.get(key) for content in contents))]
    rows = [[{k: v for k, v in row.items() if k not in TIMES} for row in run.read_metrics()] for run in (one, other)]
    return found + ([] if rows[0] == rows[1] else ["metrics.csv"])


def files(run):
    return {str(file.relative_to(run.path)) for file in run.path.rglob("*")}


def same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.torture
@pytest.mark.parametrize("way", WAYS)
def test_killed_runs_end_as_unbroken_ones(way, tmp_path, capsys):
    write_images(tmp_path / "data" / "train")
    write_images(tmp_path / "data" / "test", count=4, seed=1)
    words = [f"--data.name=folder:{tmp_path}/data", "--data.batch_size=8", "--data.padding=1", "--data.channels=3"]
    words += ["--data.validation=0.25", "--trainer.max_epochs=6", "--pixels.kind=cutmix", *WAYS[way]]
    plan, whole = make_plan(load_recipe("digits-cut"), words), Run(tmp_path / "whole")
    start = time.monotonic()
    in_a_process_of_its_own(partial(go_on, whole, plan))
    length, rng, wrong, killed = time.monotonic() - start, random.Random(0), [], 0
    for number in range(KILLS):
        run = Run(tmp_path / f"run-{number}")
        while not in_a_process_of_its_own(partial(go_on, run, plan), rng.uniform(0.05, length)):
            killed += 1
        if found := differences(whole, run):
            wrong.append((number, found[:3]))
    with capsys.disabled():
        print(f"\n{way}: {KILLS - len(wrong)} of {KILLS} killed runs ({killed} kills) end as the unbroken one")
    assert not wrong
