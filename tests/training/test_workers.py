"""Worker processes: batches too large for shared memory, and workers that die."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children

import numpy as np
import pytest
from conftest import plan_of
from lightning.pytorch.callbacks import Callback

from mixmo import library
from mixmo.cli.main import main
from mixmo.data import image_sets, workers
from mixmo.deploy import images
from mixmo.errors import InputError
from mixmo.runs import RunFolder
from mixmo.training.fit import fit

STREAMED = ("--data.in_memory=false", "--data.image_size=8", "--data.workers=2", "--trainer.max_epochs=2")


@pytest.fixture
def limit_memory(monkeypatch, tmp_path):
    """Sets the number of free bytes of shared memory."""
    monkeypatch.setattr(workers, "SHARED", tmp_path)

    def free(size):
        usage = type(shutil.disk_usage(tmp_path))(size, 0, size)
        monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: usage)

    return free


def test_batches_that_do_not_fit_into_shared_memory_are_refused_before_the_run_exists(limit_memory, pictures, tmp_path):
    """Of 18 images of 3·8·8 bytes, in batches of 8, workers prefetch all three batches."""
    run, plan = RunFolder(tmp_path / "run"), plan_of(pictures, *STREAMED, "--data.batch_repetition=1")
    limit_memory(3 * 8 * 192 - 1)
    with pytest.raises(InputError, match=r"data.workers is 2: .* up to 3 batches of 1 MB .* use fewer workers"):
        fit(plan, run)
    assert not run.path.exists()
    fit(plan_of(pictures, *STREAMED, "--data.workers=0", "--trainer.max_epochs=1"), run)
    limit_memory(3 * 8 * 192)
    fit(plan, RunFolder(tmp_path / "fits"))


def test_docker_s_default_is_too_small_for_two_workers_and_batches_of_39_megabytes(limit_memory):
    limit_memory(64 * 2**20)
    with pytest.raises(InputError, match="up to 4 batches of 39 MB at a time, 156 MB of shared memory"):
        workers.check_batches_fit(39 * 2**20, 1000, 2)
    workers.check_batches_fit(16 * 2**20, 1000, 2)
    with pytest.raises(InputError):
        workers.check_batches_fit(16 * 2**20, 1000, 2, processes=2)
    workers.check_batches_fit(39 * 2**20, 1, 2)  # no more are there to read ahead


class KillWorker(Callback):
    """Kills a worker during a step, like the kernel when memory is full."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 1:
            os.kill(active_children()[0].pid, signal.SIGKILL)
            time.sleep(0.2)


def test_a_worker_that_is_killed_ends_the_run_with_a_sentence(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(library, "train_run", lambda *given: fit(*given[:3], [KillWorker()], *given[4:]))
    words = ["--data.channels=3", "--data.batch_size=8", "--data.padding=1", *STREAMED, f"--run={tmp_path}/run"]
    began = time.monotonic()
    assert main(["fit", "digits-cut", f"--data.name=folder:{pictures}", *words]) == 2
    assert time.monotonic() - began < 60
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "a DataLoader worker was killed (Killed)" in said[0]
    assert f"`mixmo fit {tmp_path}/run` resumes it" in said[0]


def test_a_batch_that_cannot_be_handed_over_ends_the_run(pictures, tmp_path, monkeypatch):
    """Otherwise the worker lives on, and the main process waits for a batch that never arrives."""
    monkeypatch.setattr(image_sets, "DistinctBatch", lambda *parts: threading.Lock())  # which no process can send
    with pytest.raises(InputError, match=r"could not send its batch .* mostly for lack of shared memory"):
        fit(plan_of(pictures, *STREAMED), RunFolder(tmp_path / "run"))


def test_so_do_images_to_predict(monkeypatch):
    monkeypatch.setattr(images, "Decoded", lambda *parts: threading.Lock())
    with pytest.raises(RuntimeError) as caught:
        list(images.decode_batches([np.zeros((8, 8, 3), np.uint8)] * 4, [], 2, workers=1))
    assert "could not send its batch" in str(workers.explain_lost_worker(caught.value))


def unshared():
    """Return whether this process may give a child a separate /dev/shm."""
    words = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm"]
    able = sys.platform == "linux" and shutil.which("unshare")
    return able and subprocess.run(words, capture_output=True, check=False).returncode == 0


TWICE = """
import sys
from mixmo.cli.main import main
from mixmo.data import image_sets
codes = [main(sys.argv[1:])]
image_sets.check_batches_fit = lambda *sizes: None
sys.exit([*codes, main(sys.argv[1:])] != [2, 2])
"""
"""Fits with the check before training, and without it."""


@pytest.mark.slow
@pytest.mark.skipif(not unshared(), reason="needs root, to mount a small /dev/shm in a namespace of its own")
def test_a_small_shared_memory_ends_the_run_with_a_sentence(pictures, tmp_path):
    words = ["fit", "digits-cut", f"--data.name=folder:{pictures}", f"--run={tmp_path}/run", "--data.channels=3"]
    words += ["--data.batch_size=8", *STREAMED, "--data.image_size=256", "--data.crop_size=8"]
    script = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", TWICE, *words],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert "workers prefetch up to" in said[0] and "/dev/shm has 1 MB free" in said[0]
    assert (
        "a DataLoader worker" in said[-1]
        and "for lack of" in said[-1]
        and f"`mixmo fit {tmp_path}/run` resumes" in said[-1]
    )


def test_a_worker_that_ends_while_its_batch_is_fetched_is_named():
    """The main process then meets an error of multiprocessing without a message."""
    from multiprocessing import resource_sharer

    gone = resource_sharer.DupFd(0)
    resource_sharer.stop()
    with pytest.raises((EOFError, ConnectionError, FileNotFoundError)) as caught:
        gone.detach()
    assert "could not send its batch" in str(workers.explain_lost_worker(caught.value))
    assert workers.explain_lost_worker(FileNotFoundError("else")) is None
