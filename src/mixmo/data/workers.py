"""Shared memory of worker processes, and how they stop."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import sys
import traceback
from multiprocessing.queues import Queue
from pathlib import Path

from mixmo.data.messages import silence_readers
from mixmo.errors import InputError, reason

SHARED = Path("/dev/shm")
"""Linux's shared memory, which all of torch's sharing strategies use."""

PREFETCHED = 2
"""Batches that each worker prefetches."""

STOP_TIMEOUT = 20
"""Seconds that a worker may continue for after SIGTERM."""

UNSENT = 74
"""Exit code of a worker that could not send a batch."""

FEWER = "use fewer workers (0 reads in the main process)"
ADVICE = f"{FEWER}, smaller batches, or more shared memory (docker run --shm-size)"


def check_batches_fit(batch_bytes: int, batches: int, workers: int, processes: int = 1) -> None:
    """Refuse prefetched batches that do not fit in shared memory, since training would wait for them forever.

    Each of ``processes`` on this machine has a loader of ``batches``, with ``workers``.
    """
    if not SHARED.is_dir():
        return
    ahead = processes * min(PREFETCHED * workers, batches)
    needed, free = ahead * batch_bytes, shutil.disk_usage(SHARED).free
    if needed > free:
        size, total = math.ceil(batch_bytes / 2**20), math.ceil(needed / 2**20)
        raise InputError(
            f"data.workers is {workers}: workers prefetch up to {ahead} batches of {size} MB at a time, {total} MB of "
            f"shared memory, but {SHARED} has {free // 2**20} MB free; {ADVICE}."
        )


def begin_worker(number: int) -> None:
    """Initialise a worker: ignore interrupts, stop some time after SIGTERM, and exit if a batch cannot be sent.

    When both processes get a signal, the main one may still need this worker's images for a while; a second signal
    stops the worker at once. Without the exit, the main process would wait forever for the batch.
    """
    silence_readers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # not on Windows, where workers get no signal to stop
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, _stop_soon)
    Queue._on_queue_feeder_error = staticmethod(_exit_unsent)  # type: ignore[attr-defined]


def _stop_soon(*_: object) -> None:
    signal.alarm(STOP_TIMEOUT)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_unsent(error: BaseException, _: object) -> None:
    print(f"mixmo: a batch of images cannot be sent: {reason(error)}.", file=sys.stderr, flush=True)
    os._exit(UNSENT)


def explain_lost_worker(error: BaseException) -> str | None:
    """Return why a worker was lost and what to do, if a torch error reports this.

    Example:
        >>> explain_lost_worker(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
        'a DataLoader worker was killed (Killed), as happens when memory is full; use fewer workers (0 reads in the ...'
    """
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    receiving = any(name.endswith("resource_sharer.py") for name in frames)  # from a worker that stopped meanwhile
    vanished = isinstance(error, EOFError | ConnectionError | FileNotFoundError) and receiving
    reported = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
    if not vanished and not reported:
        return None
    text = f"{error} {error.__cause__}"  # if the main process was waiting, the cause says how the worker stopped
    if vanished or "Bus error" in text or f"exit code {UNSENT}." in text:
        return f"a DataLoader worker could not send its batch (see above), mostly for lack of shared memory; {ADVICE}."
    if killed := re.search(r"killed by signal: ([^.]+)", text):
        return f"a DataLoader worker was killed ({killed[1].strip()}), as happens when memory is full; {FEWER}."
    return f"a DataLoader worker stopped unexpectedly (see above), mostly for lack of memory; {FEWER}."
