"""Killed exports: the earlier export stays in place, and the next export removes all leftovers."""

import os
import random
import shutil
import signal
import stat
import sys
import time
from functools import partial

import pytest
from killing import run_in_fork

from mixmo.deploy.export import FORMATS, export
from mixmo.deploy.hub import save_pretrained
from mixmo.deploy.load import load_members
from mixmo.digests import is_whole_export
from mixmo.evaluation.inference import TrainedRun
from mixmo.files import PARTIAL
from mixmo.runs import RunFolder

KILLS = int(os.environ.get("EXPORT_KILLS", "12"))
"""For each format; half of them at a moment, half before one of the steps that change the folder."""

STEPS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}


def write(trained, format, out, kill_at=None, counted=None):
    """Export, and kill the process before its n-th file operation, or count these operations."""
    steps = 0

    def count(event, arguments):
        nonlocal steps
        if event in STEPS and str(out.parent) in str(arguments[0]):
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    if format == "hub":
        save_pretrained(trained.path, out)
    else:
        export(trained, format, out)
    if counted:
        counted.write_text(str(steps))


def find_leftovers(out):
    return [each for each in out.parent.iterdir() if each.name.endswith(PARTIAL)]


def age(out):
    """Make the leftovers of killed processes two hours old."""
    for each in find_leftovers(out):
        os.utime(each, (time.time() - 7200,) * 2)


def is_whole(out):
    if out.name == "hub":  # a folder that was shared is not replaced, and comes whole or not at all
        return not out.exists() or load_members(out)[1].classes == ["cat", "dog", "emu"]
    if out.name == "timm" and not out.exists():  # between two renames
        return any(is_whole_export(each / "earlier") for each in find_leftovers(out))
    return is_whole_export(out)


def modes(out):
    files = [out, *(out.rglob("*") if out.is_dir() else [])]
    return {(stat.S_ISDIR(each.stat().st_mode), oct(stat.S_IMODE(each.stat().st_mode))) for each in files}


@pytest.mark.torture
@pytest.mark.parametrize("format", [*FORMATS, "hub"])
def test_killed_exports_lose_nothing(gone, tmp_path, format, capsys):
    trained, rng, killed, wrong = TrainedRun(RunFolder(gone)), random.Random(0), 0, []
    out, counted = tmp_path / "out" / FORMATS.get(format, format), tmp_path / "steps"
    _ = trained.network
    before, start = os.umask(0o027), time.monotonic()
    try:
        assert run_in_fork(partial(write, trained, format, out, counted=counted))
        length, steps, tries = time.monotonic() - start, int(counted.read_text()), 0
        while killed < KILLS:
            tries += 1
            if format == "hub":
                shutil.rmtree(out, ignore_errors=True)
            at = rng.randint(1, steps) if tries % 2 else None
            if run_in_fork(
                partial(write, trained, format, out, at), None if at else rng.uniform(0, length), may_die=True
            ):
                continue
            killed += 1
            if not is_whole(out) or len(find_leftovers(out)) > 1:
                wrong.append((at, os.listdir(out.parent)))
            age(out)
        if format == "hub":
            shutil.rmtree(out, ignore_errors=True)
        assert run_in_fork(partial(write, trained, format, out))
    finally:
        os.umask(before)
    with capsys.disabled():
        print(f"\n{format}: {killed} kills in {tries} exports of {steps} steps, {len(wrong)} lost or left anything")
    assert not wrong
    assert out.exists() and is_whole(out) and not find_leftovers(out)
    assert modes(out) <= {(True, "0o750"), (False, "0o640")}
