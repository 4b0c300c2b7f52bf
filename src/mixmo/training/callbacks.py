"""Metric rows and the progress bar."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar

from mixmo.runs import RunFolder
from mixmo.training.step import Training

log = logging.getLogger("mixmo")

BETWEEN_LINES = 2.0
"""Seconds from a line of the log to the next, or more; the last epoch always has one."""


class EpochLog(Callback):
    """Writes a row of ``metrics.csv`` for each epoch, tells the loggers and, not too often, logs a line."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.started = time.perf_counter()
        self.logged = -math.inf

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what was measured."""
        measured = {key: float(value) for key, value in trainer.callback_metrics.items()}
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": time.perf_counter() - self.started,
            **measured,
        }
        if not trainer.is_global_zero:
            return
        self.run.append_metrics(row)
        for logger in trainer.loggers:
            logger.log_metrics(measured, trainer.global_step)
        now = time.perf_counter()
        if now - self.logged >= BETWEEN_LINES or row["epoch"] == trainer.max_epochs:
            log.info("epoch %d/%s  %s", row["epoch"], trainer.max_epochs, summarise(measured))
            self.logged = now


def summarise(measured: dict[str, float]) -> str:
    """Return an epoch's metrics in one line; accuracies in %, members in brackets.

    Example:
        >>> members = {f"train_member_{i}_accuracy": 0.5 for i in range(2)}
        >>> summarise({"train_loss": 1.25, "images_per_second": 900.0, "val_accuracy": 0.75} | members)
        'loss 1.25  train (50.0 50.0)  val 75.0  900 images/s'
    """

    def members(split: str) -> str:
        found = [100 * value for key, value in measured.items() if key.startswith(f"{split}_member_")]
        return f" ({' '.join(f'{value:.1f}' for value in found)})" if found else ""

    parts = [f"loss {measured['train_loss']:.4g}", f"train{members('train')}"]
    if "val_accuracy" in measured:
        parts.append(f"val {100 * measured['val_accuracy']:.1f}{members('val')}")
    return "  ".join([*parts, f"{measured['images_per_second']:.0f} images/s"])


class ProgressBar(RichProgressBar):
    """Lightning's bar, which looks at the metrics only when they are new: each look waits for the device.

    Args:
        training: What is trained; counts its reports.
    """

    def __init__(self, training: Training) -> None:
        super().__init__()
        self._training, self._reports = training, -1
        self._shown: dict[str, Any] = {}

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return the metrics behind the bar."""
        if self._training.reports != self._reports or not trainer.training:
            self._reports, self._shown = self._training.reports, super().get_metrics(trainer, pl_module)
        return self._shown
