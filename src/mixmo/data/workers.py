"""Worker processes: shared memory, and how they end."""

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

from mixmo.data.messages import silence_pillow
from mixmo.errors import InputError, reason

SHARED = Path("/dev/shm")
"""Where Linux keeps shared memory, which all of torch's sharing strategies use."""

PREFETCHED = 2
"""Batches that each worker reads ahead."""

GRACE = 20
"""Seconds for which a worker still decodes after it is asked to stop."""

UNSENT = 74
"""Exit code of a worker that could not hand over a batch."""

WAYS_OUT = (
    "use fewer workers (0 reads in the main process), smaller batches, or more shared memory (docker run --shm-size)"
)


def check_room(batch_bytes: int, batches: int, workers: int, processes: int = 1) -> None:
    """Refuse batches read ahead that do not fit into shared memory: training would wait for them forever.

    All together there are so many ``batches``, and so many ``processes`` on this machine with such workers.
    """
    if not SHARED.is_dir():
        return
    ahead = processes * min(PREFETCHED * workers, batches)
    needed, free = ahead * batch_bytes, shutil.disk_usage(SHARED).free
    if needed > free:
        each, together = math.ceil(batch_bytes / 2**20), math.ceil(needed / 2**20)
        raise InputError(
            f"data.workers is {workers}: workers hand over up to {ahead} batches of {each} MB at a time, {together} MB "
            f"of shared memory, but {SHARED} has {free // 2**20} MB free; {WAYS_OUT}."
        )


def begin_worker(number: int) -> None:
    """Make a worker leave interrupts to the main process, and exit if it cannot hand over a batch.

    After a signal to both, the main process may still need this worker's images, but not forever; a second signal ends
    the worker at once. The main process would wait forever for a batch that cannot be handed over.
    """
    silence_pillow()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # not on Windows, where workers get no signal to stop
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, _end_soon)
    Queue._on_queue_feeder_error = staticmethod(_end_unsent)  # type: ignore[attr-defined]


def _end_soon(*_: object) -> None:
    signal.alarm(GRACE)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_unsent(error: BaseException, _: object) -> None:
    print(f"mixmo: a batch of images cannot be handed over: {reason(error)}.", file=sys.stderr, flush=True)
    os._exit(UNSENT)


def lost_worker(error: BaseException) -> str | None:
    """Return what happened to a worker and what to do, if a torch error reports that one was lost.

    Example:
        >>> lost_worker(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
        'a process that reads images was killed (Killed), as happens when the memory is full; use fewer workers.'
    """
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    fetching = any(name.endswith("resource_sharer.py") for name in frames)  # a batch, from a worker that ends meanwhile
    vanished = isinstance(error, EOFError | ConnectionError | FileNotFoundError) and fetching
    torch_says = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
    if not vanished and not torch_says:
        return None
    text = f"{error} {error.__cause__}"  # where the main process waited, the cause says how the worker ended
    if vanished or "Bus error" in text or f"exit code {UNSENT}." in text:
        return (
            "a process that reads images could not hand over its batch (the lines above say why), mostly for lack of "
            f"shared memory; {WAYS_OUT}."
        )
    if killed := re.search(r"killed by signal: ([^.]+)", text):
        how = "as happens when the memory is full; use fewer workers"
        return f"a process that reads images was killed ({killed[1].strip()}), {how}."
    return (
        "a process that reads images has ended unexpectedly (lines above may say why), mostly for lack of memory; use "
        "fewer workers (0 reads in the main process)."
    )
