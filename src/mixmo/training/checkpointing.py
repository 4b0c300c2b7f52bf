"""Checkpoints and stops on signals, at the same step on all ranks."""

from __future__ import annotations

import logging
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import distributed as dist

from mixmo.checkpoints import BEST, LAST, PREVIOUS, STATE, duplicate, load, save
from mixmo.config.settings import TrainerSettings
from mixmo.errors import StoppedError
from mixmo.files import make_folder
from mixmo.runs import RunFolder
from mixmo.training import ranks
from mixmo.training.step import Training

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Sent by Ctrl+C, by a system that shuts down, and by SLURM."""
SYNC_EVERY = 8
"""Steps between two exchanges of signals among the ranks."""

log = logging.getLogger("mixmo")


class StopSignals:
    """Records signals that ask the process to stop; a second one gets the previous handler.

    Handlers are installed by :meth:`listen`, until a second signal or until Lightning restores the previous ones.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}
        self._group: Any = None

    def listen(self) -> None:
        """Install the handlers; Python allows this in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._record) for number in SIGNALS}
        if ranks.size() > 1:
            self._group = dist.new_group(backend="gloo")  # without waiting for a device

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            for previous, handler in self._previous.items():
                signal.signal(previous, handler)
            signal.raise_signal(number)
        self.received = number

    def agree(self, due: bool, step: int) -> tuple[bool, bool]:
        """Return whether any rank got a signal, and whether a checkpoint is due on any: the same on all ranks."""
        if ranks.size() == 1:
            return self.received > 0, due
        if step % SYNC_EVERY:
            return False, False
        flags = torch.tensor([self.received, int(due)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, self._group)
        self.received = int(flags[0])
        return self.received > 0, bool(flags[1])


class DigestCheckpointIO(CheckpointIO):
    """Reads and writes Lightning's checkpoints by :mod:`mixmo.checkpoints`, and deletes none."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        make_folder(Path(path).parent)  # of a user's ModelCheckpoint, too
        save(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint."""
        return load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Do nothing: a run's checkpoints are never deleted."""


class Checkpoints(Checkpoint):
    """Keeps the last checkpoint, the one before it and, if the run is validated, the best.

    They are written after each epoch, within it when due, and when a signal asks the run to stop. The best is written
    before the last: a run that dies between the two repeats the epoch with the same result. Checkpoints store the
    score to beat.
    """

    def __init__(self, run: RunFolder, settings: TrainerSettings, validated: bool) -> None:
        self.run, self.folder, self.settings, self.validated = run, run.checkpoint_folder, settings, validated
        self.best_score, self.best_epoch = float("-inf"), -1
        self.signals, self.saved_at, self.recorded = StopSignals(), time.monotonic(), False

    @property
    def state_key(self) -> str:
        """Key of the callback's state in a checkpoint."""
        return STATE

    def state_dict(self) -> dict[str, float]:
        """Return the best score and its epoch."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and its epoch."""
        self.best_score = float(state_dict.get("best_score", float("-inf")))
        self.best_epoch = int(state_dict.get("best_epoch", -1))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install signal handlers; end at once if the resumed run had stopped early."""
        self.signals.listen()
        self._end_early(trainer, trainer.current_epoch - 1)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if one is due within the epoch; its end has one anyway."""
        step = trainer.global_step
        minutes, steps = self.settings.checkpoint_every_minutes, self.settings.checkpoint_every_steps
        late = minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        stopped, due = self.signals.agree(late, step)
        if (stopped or due or (steps and step % steps == 0)) and not trainer.is_last_batch:
            assert isinstance(pl_module, Training)
            pl_module.sync_before_eval()
            self._save(trainer)
            if stopped:
                self._stop(f"step {step}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``last.ckpt``, and ``best.ckpt`` if the score improved."""
        assert isinstance(pl_module, Training)
        key = "val_map" if pl_module.multi_label else "val_accuracy"
        score = float(trainer.callback_metrics[key]) if self.validated else float("-inf")
        improved = score > self.best_score
        if improved:
            self.best_score, self.best_epoch = score, trainer.current_epoch
        self._save(trainer, improved)
        self._end_early(trainer, trainer.current_epoch)
        stopped, _ = self.signals.agree(False, 0)
        if stopped and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self._stop(f"epoch {trainer.current_epoch + 1}")

    def _stop(self, done: str) -> None:
        number = self.signals.received
        name = signal.Signals(number).name
        raise StoppedError(f"stopped by {name} after {done}; {self.run.how_to_resume}.", 128 + number)

    def _end_early(self, trainer: L.Trainer, epoch: int) -> None:
        """Stop the trainer if the best score is ``trainer.patience`` epochs old."""
        patience = self.settings.patience
        remaining = (trainer.max_epochs or 0) - epoch - 1
        if patience is None or self.best_epoch < 0 or epoch - self.best_epoch < patience or not remaining:
            return
        trainer.should_stop = True
        training = trainer.lightning_module
        assert isinstance(training, Training)
        log.info(
            "stopped early after epoch %d of %s (trainer.patience %d): epoch %d was the best, with %s of %.1f "
            "%% on validation images; %d epochs were not run, and the learning rate was still %.3g %% of its peak",
            epoch + 1, trainer.max_epochs, patience, self.best_epoch + 1,
            "a mAP" if training.multi_label else "an accuracy", 100 * self.best_score,
            remaining, 100 * training.schedule(trainer.global_step),
        )  # fmt: skip

    def _save(self, trainer: L.Trainer, improved: bool = False) -> None:
        last, best = make_folder(self.folder) / LAST, self.folder / BEST
        if ranks.rank() == 0 and last.is_file():
            duplicate(last, self.folder / PREVIOUS)
        trainer.save_checkpoint(best if improved else last)  # on all ranks: it gathers their states
        if ranks.rank() == 0:
            if improved:
                duplicate(best, last)
            if not self.recorded and not (about := self.run.about()).get("checkpointed"):
                self.run.write_json("environment.json", about | {"checkpointed": True})
            self.recorded = True
        self.saved_at = time.monotonic()
