"""Stopping on signals, at the same step on all ranks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import torch
from torch import distributed as dist
from torch.utils.data import dataloader

from mixmo.errors import StoppedError
from mixmo.training import ranks

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # what a keyboard, a system that shuts down, and SLURM send
PATIENCE = 10
"""Seconds for which a run that is asked to stop still waits for images, which may never come."""
ASKED_EVERY = 8
"""Steps from one time the ranks ask one another to the next."""


class StopSignals:
    """Notes signals that ask the process to stop; a second one stops at once, as without us.

    Handlers are this one's from :meth:`listen` until :meth:`ignore`, or until Lightning gives back those from before
    the training. Called after that, :meth:`ignore` would bring Lightning's own back.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Any) -> None:
        self.received: int | None = None
        self.folder, self._waited = folder, 0
        self._looked: Any = None
        self._before: dict[int, Any] = {}
        self._group: Any = None

    def listen(self) -> None:
        """Take the signals over, in the main thread; elsewhere Python allows no handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        if ranks.size() > 1:
            self._group = dist.new_group(backend="gloo")  # asks between hosts, without waiting for a device

    def ignore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        self.rest()

    def rest(self) -> None:
        """Look no more whether the run waits."""
        if self._looked is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._looked)
            self._looked = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self.ignore()
            signal.raise_signal(number)
        self.received = number
        if hasattr(signal, "setitimer"):  # not on Windows
            self._looked = signal.signal(signal.SIGALRM, self._look)
            signal.setitimer(signal.ITIMER_REAL, 1, 1)

    def _look(self, number: int, frame: FrameType | None) -> None:
        """End a run that has waited for images all the time since it was asked to stop, looked at every second."""
        self._waited = self._waited + 1 if _waits_for_workers(frame) else 0
        if self._waited >= PATIENCE:
            self.stop("waiting for images in vain")

    def agree(self, due: bool, step: int) -> tuple[bool, bool]:
        """Return whether any rank was asked to stop, and whether a checkpoint is due on any; the same on all ranks.

        Args:
            due: Whether this rank finds a checkpoint due.
            step: The step; ranks ask one another every few steps only.
        """
        if ranks.size() == 1:
            return self.received is not None, due
        if step % ASKED_EVERY:
            return False, False
        asked = torch.tensor([self.received or 0, int(due)])
        dist.all_reduce(asked, dist.ReduceOp.MAX, self._group)
        self.received = int(asked[0]) or None
        return self.received is not None, bool(asked[1])

    def stop(self, done: str) -> None:
        """End the run, after its checkpoint is written.

        Args:
            done: How far it came, in words.

        Raises:
            StoppedError: always.
        """
        self.rest()
        number, again = self.received, f"`mixmo fit {self.folder}` resumes it."
        if hasattr(signal, "SIGUSR1") and number == signal.SIGUSR1 and ranks.rank() == 0 and _requeued():
            again = "SLURM starts it again."
        name = signal.Signals(number).name if number is not None else "a signal"
        raise StoppedError(f"stopped by {name} after {done}; {again}", 128 + (number or 2))


def _waits_for_workers(frame: FrameType | None) -> bool:
    """Return whether the code at hand is torch's loader, where it takes batches from its workers."""
    while frame is not None:
        if frame.f_code.co_filename == dataloader.__file__:
            return True
        frame = frame.f_back
    return False


def _requeued() -> bool:
    """Put the SLURM job back into its queue, and return whether that worked."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch(r"\d+(_\d+)?", job):
        return False
    try:
        return subprocess.run(["scontrol", "requeue", job], timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
