"""When a run keeps checkpoints, and how Lightning writes and reads them here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from mixmo.checkpoints import BEST, LAST, PREVIOUS, STATE, duplicate, load, save
from mixmo.files import make_folder
from mixmo.runs import Run


class SealedIO(CheckpointIO):
    """How Lightning reads and writes checkpoints here: by :mod:`mixmo.checkpoints`; it deletes none."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        save(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint."""
        return load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Do nothing: what a run has kept is never deleted."""


class Checkpoints(Checkpoint):
    """Keeps the last checkpoint, the one before it, and the best on validation, after each epoch.

    The best is written before the last: a run that dies between the two does the epoch again, and comes to the same.
    The score to beat travels in the checkpoint, so that a moved run knows it.

    Args:
        run: Whose checkpoints they are.
        validated: Whether there is a validation set to score by.
    """

    def __init__(self, run: Run, validated: bool) -> None:
        self.run, self.folder, self.validated = run, run.checkpoint_folder, validated
        self.best_score, self.best_epoch = float("-inf"), -1

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint."""
        return STATE

    def state_dict(self) -> dict[str, float]:
        """Return the score to beat, and the epoch that had it."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.best_score = float(state_dict.get("best_score", float("-inf")))
        self.best_epoch = int(state_dict.get("best_epoch", -1))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what is due."""
        score = float(trainer.callback_metrics["val_accuracy"]) if self.validated else float("-inf")
        improved = score > self.best_score
        if improved:
            self.best_score, self.best_epoch = score, trainer.current_epoch
        last, best = make_folder(self.folder) / LAST, self.folder / BEST
        if last.is_file():
            duplicate(last, self.folder / PREVIOUS)
        trainer.save_checkpoint(best if improved else last)
        if improved:
            duplicate(best, last)
        if not (about := self.run.about()).get("checkpointed"):
            self.run.write_json("environment.json", about | {"checkpointed": True})
