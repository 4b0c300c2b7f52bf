"""A rank that dies must not leave the others waiting: each gives signs of life, and where they end the others stop."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch exports it by a star import

from mixmo.errors import InputError, StoppedError
from mixmo.runs import RunFolder
from mixmo.training import ranks

EVERY = 0.1
"""Seconds from one sign of life to the next."""
PATIENCE = 20.0
"""Seconds of silence after which a rank counts as dead; Python's threads go on while a step computes."""


class RankWatch(Callback):
    """Ends this process, naming the rank at fault, where another rank died or stopped with an error.

    Args:
        run: What is trained; said to whoever wants to resume it.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run, self.over = run, threading.Event()
        self.store: Any = None
        self.names: list[str] = []
        self.children: list[Any] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Meet the other ranks, and watch them from here."""
        if ranks.size() == 1:
            return
        host = os.environ["MASTER_ADDR"]
        if ranks.rank() == 0:
            self.store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        port = [self.store.port if self.store else 0]
        dist.broadcast_object_list(port)
        if self.store is None:
            self.store = TCPStore(host, port[0], is_master=False)
        self.names = [""] * ranks.size()
        dist.all_gather_object(self.names, f"rank {ranks.rank()} (process {os.getpid()} on {socket.gethostname()})")
        self.children = getattr(trainer.strategy.launcher, "procs", [])
        self.store.set(f"beat/{ranks.rank()}", "0")
        dist.barrier()
        threading.Thread(target=self._watch, args=(ranks.rank(),), daemon=True, name="rank-watch").start()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Tell the others of an error; wait to hear of theirs where a collective call has failed."""
        if self.store is None:
            return
        if isinstance(exception, InputError | StoppedError | MemoryError):
            if not isinstance(exception, StoppedError):
                self.store.set("error", f"{self.names[ranks.rank()]} has stopped: {exception}")
            self.over.set()
        else:
            self.over.wait(PATIENCE + 5)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop watching, all ranks together."""
        self.over.set()
        if self.store is not None and ranks.size() > 1:
            dist.barrier()
            self.store = None

    def _watch(self, own: int) -> None:
        beats = dict.fromkeys(range(len(self.names)), "")
        heard = dict.fromkeys(beats, time.monotonic())
        count = 0
        while not self.over.wait(EVERY):
            count += 1
            try:
                self.store.set(f"beat/{own}", str(count))
                for number in beats:
                    beat = self.store.get(f"beat/{number}")
                    if beat != beats[number]:
                        beats[number], heard[number] = beat, time.monotonic()
                problem = self.store.get("error").decode() if self.store.check(["error"]) else ""
            except Exception:  # the store is rank 0's: either it ended well, which is known in a moment, or it died
                if self.over.wait(3):
                    return
                problem = f"{self.names[0]} has died"
            silent = [number for number, last in heard.items() if time.monotonic() - last > PATIENCE]
            ended = [number for number, child in enumerate(self.children, 1) if child.poll()]
            if not problem and (dead := ended or silent):
                problem = f"{self.names[dead[0]]} has died"
            if problem and not self.over.is_set():
                self._end(problem)

    def _end(self, problem: str) -> None:
        """End this process at once: its main thread waits for a rank that is no more."""
        text = f"mixmo: {problem.rstrip('.')}; all ranks stop. `mixmo fit {self.run.path}` resumes the run."
        print(text, file=sys.stderr, flush=True)
        with suppress(Exception):  # the store ends with rank 0, which leaves the others time to read what happened
            self.store.set("error", problem)
            time.sleep(10 * EVERY if ranks.rank() == 0 else 0)
        for child in self.children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
        os._exit(1)
