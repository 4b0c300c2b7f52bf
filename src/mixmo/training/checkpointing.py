"""When checkpoints are written, and stops on signals, at the same step on all ranks."""

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
"""What a keyboard, a system that shuts down, and SLURM send."""
ASKED_EVERY = 8
"""Steps between two exchanges among the ranks."""

log = logging.getLogger("mixmo")


class StopSignals:
    """Notes signals that ask the process to stop; a second one stops at once, as by default.

    Its handlers are installed from :meth:`listen` until a second signal, or until Lightning restores the previous ones.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._group: Any = None

    def listen(self) -> None:
        """Take the signals over, in the main thread; elsewhere Python allows no handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        if ranks.size() > 1:
            self._group = dist.new_group(backend="gloo")  # asks between hosts, without waiting for a device

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            for each, handler in self._before.items():
                signal.signal(each, handler)
            signal.raise_signal(number)
        self.received = number

    def agree(self, due: bool, step: int) -> tuple[bool, bool]:
        """Return whether any rank was asked to stop, and whether a checkpoint is due on any; the same on all ranks."""
        if ranks.size() == 1:
            return self.received > 0, due
        if step % ASKED_EVERY:
            return False, False
        asked = torch.tensor([self.received, int(due)])
        dist.all_reduce(asked, dist.ReduceOp.MAX, self._group)
        self.received = int(asked[0])
        return self.received > 0, bool(asked[1])


class SealedIO(CheckpointIO):
    """How Lightning reads and writes checkpoints here: by :mod:`mixmo.checkpoints`; it deletes none."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        save(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint."""
        return load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Do nothing: a run's checkpoints are never deleted."""


class Checkpoints(Checkpoint):
    """Keeps the last checkpoint, the one before it, and the best on validation, if the run is validated.

    One is written after each epoch, within it when one is due, and when the run is asked to stop. The best is written
    before the last: a run that dies between the two repeats the epoch with the same result. The score to beat is
    stored in the checkpoint, so that a moved run knows it.
    """

    def __init__(self, run: RunFolder, settings: TrainerSettings, validated: bool) -> None:
        self.run, self.folder, self.settings, self.validated = run, run.checkpoint_folder, settings, validated
        self.best_score, self.best_epoch = float("-inf"), -1
        self.signals, self.written, self.noted = StopSignals(), time.monotonic(), False

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint."""
        return STATE

    def state_dict(self) -> dict[str, float]:
        """Return the score to beat, and the epoch that had it."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.best_score = float(state_dict.get("best_score", float("-inf")))
        self.best_epoch = int(state_dict.get("best_epoch", -1))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to signals; a run that ended early, and is resumed, ends again."""
        self.signals.listen()
        self._end_early(trainer, trainer.current_epoch - 1)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write what is due within an epoch; its end has a checkpoint anyway."""
        step = trainer.global_step
        stopped, due = self.signals.agree(self._due(step), step)
        if (stopped or due) and not trainer.is_last_batch:
            assert isinstance(pl_module, Training)
            pl_module.sync_before_eval()
            self._keep(trainer)
            if stopped:
                self._stop(f"step {step}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last and, where it is, the best."""
        assert isinstance(pl_module, Training)
        key = "val_map" if pl_module.multi_label else "val_accuracy"
        score = float(trainer.callback_metrics[key]) if self.validated else float("-inf")
        improved = score > self.best_score
        if improved:
            self.best_score, self.best_epoch = score, trainer.current_epoch
        self._keep(trainer, improved)
        self._end_early(trainer, trainer.current_epoch)
        stopped, _ = self.signals.agree(False, 0)
        if stopped and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self._stop(f"epoch {trainer.current_epoch + 1}")

    def _stop(self, done: str) -> None:
        number = self.signals.received
        name, again = signal.Signals(number).name, f"`mixmo fit {self.run.path}` resumes it."
        raise StoppedError(f"stopped by {name} after {done}; {again}", 128 + number)

    def _end_early(self, trainer: L.Trainer, epoch: int) -> None:
        """Ask the trainer to end where the score has not been beaten for too long."""
        patience = self.settings.patience
        left = (trainer.max_epochs or 0) - epoch - 1
        if patience is None or self.best_epoch < 0 or epoch - self.best_epoch < patience or not left:
            return
        trainer.should_stop = True
        training = trainer.lightning_module
        assert isinstance(training, Training)
        log.info(
            "stopped early after epoch %d of %s (trainer.patience %d): epoch %d was the best, with %s of %.1f "
            "%% on validation images; %d epochs were not run, and the learning rate was still %.3g %% of its peak",
            epoch + 1, trainer.max_epochs, patience, self.best_epoch + 1,
            "a mAP" if training.multi_label else "an accuracy", 100 * self.best_score,
            left, 100 * training.schedule(trainer.global_step),
        )  # fmt: skip

    def _due(self, step: int) -> bool:
        steps, minutes = self.settings.checkpoint_every_steps, self.settings.checkpoint_every_minutes
        if steps and step % steps == 0:
            return True
        return minutes is not None and time.monotonic() - self.written >= 60 * minutes

    def _keep(self, trainer: L.Trainer, best: bool = False) -> None:
        last, first = make_folder(self.folder) / LAST, self.folder / BEST if best else None
        if ranks.rank() == 0 and last.is_file():
            duplicate(last, self.folder / PREVIOUS)
        trainer.save_checkpoint(first or last)  # all ranks, which it gathers from
        if ranks.rank() == 0:
            if first is not None:
                duplicate(first, last)
            if not self.noted and not (about := self.run.about()).get("checkpointed"):
                self.run.write_json("environment.json", about | {"checkpointed": True})
            self.noted = True
        self.written = time.monotonic()
