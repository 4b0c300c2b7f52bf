"""Runs killed at random moments and resumed end with the same files as uninterrupted ones."""

import os
import random
import time
from functools import partial

import pytest
from conftest import plan_of, write_splits
from killing import differences, fit_or_resume, run_in_fork, start_or_resume

from mixmo.runs import RunFolder

KILLS = int(os.environ.get("KILLS", "1000"))
STREAMED = ["--data.in_memory=false", "--data.workers=2", "--data.image_size=8"]
WAYS = {
    "in memory": [],
    "streamed": STREAMED,
    "averaged": ["--optimizer.ema_decay=0.9"],
    "streamed and averaged": [*STREAMED, "--optimizer.ema_decay=0.9"],
}


@pytest.mark.torture
@pytest.mark.parametrize("way", WAYS)
def test_killed_runs_end_as_unbroken_ones(way, tmp_path, capsys):
    """A quarter of the kills in each way of training."""
    words = ["--trainer.max_epochs=6", "--trainer.checkpoint_every_steps=2", "--pixels.kind=cutmix", *WAYS[way]]
    plan = plan_of(write_splits(tmp_path / "data"), *words)
    whole, start = RunFolder(tmp_path / "whole"), time.monotonic()
    run_in_fork(partial(start_or_resume, whole, plan))
    length, rng, runs, wrong, killed = time.monotonic() - start, random.Random(0), 0, [], 0
    while killed < KILLS // len(WAYS):
        runs += 1
        run = RunFolder(tmp_path / f"run-{runs}")
        while not run_in_fork(partial(start_or_resume, run, plan), rng.uniform(0.02, length)):
            killed += 1
        if found := differences(whole, run, ("last", "previous", "best")):
            wrong.append((runs, found[:3]))
    with capsys.disabled():
        print(f"\n{way}: {runs - len(wrong)} of {runs} runs, killed {killed} times, end as the unbroken one")
    assert not wrong


OWN_WAYS = {"by itself": {}, "with workers, averaged": {"workers": 2, "ema_decay": 0.9}}


@pytest.mark.torture
@pytest.mark.parametrize("way", OWN_WAYS)
def test_killed_programs_end_as_undisturbed_ones(way, tmp_path, capsys):
    """``mixmo.fit`` on a Dataset whose transforms draw at random; an eighth of the kills in each way."""
    whole, start = RunFolder(tmp_path / "whole"), time.monotonic()
    run_in_fork(partial(fit_or_resume, whole.path, **OWN_WAYS[way]))
    length, rng, runs, wrong, killed = time.monotonic() - start, random.Random(0), 0, [], 0
    while killed < KILLS // 8:
        runs += 1
        run = RunFolder(tmp_path / f"run-{runs}")
        while not run_in_fork(partial(fit_or_resume, run.path, **OWN_WAYS[way]), rng.uniform(0.02, length)):
            killed += 1
        if found := differences(whole, run, ("last", "previous", "best")):
            wrong.append((runs, found[:3]))
    with capsys.disabled():
        print(f"\n{way}: {runs - len(wrong)} of {runs} programs, killed {killed} times, end as the undisturbed one")
    assert not wrong
