"""Runs that are killed at random moments, and go on, end as runs that were not: every file of theirs."""

import os
import random
import time
from functools import partial

import pytest
from conftest import plan_of, write_splits
from killing import differences, fit_own, go_on, in_a_process_of_its_own

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
    in_a_process_of_its_own(partial(go_on, whole, plan))
    length, rng, runs, wrong, killed = time.monotonic() - start, random.Random(0), 0, [], 0
    while killed < KILLS // len(WAYS):
        runs += 1
        run = RunFolder(tmp_path / f"run-{runs}")
        while not in_a_process_of_its_own(partial(go_on, run, plan), rng.uniform(0.02, length)):
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
    in_a_process_of_its_own(partial(fit_own, whole.path, **OWN_WAYS[way]))
    length, rng, runs, wrong, killed = time.monotonic() - start, random.Random(0), 0, [], 0
    while killed < KILLS // 8:
        runs += 1
        run = RunFolder(tmp_path / f"run-{runs}")
        while not in_a_process_of_its_own(partial(fit_own, run.path, **OWN_WAYS[way]), rng.uniform(0.02, length)):
            killed += 1
        if found := differences(whole, run, ("last", "previous", "best")):
            wrong.append((runs, found[:3]))
    with capsys.disabled():
        print(f"\n{way}: {runs - len(wrong)} of {runs} programs, killed {killed} times, end as the undisturbed one")
    assert not wrong
