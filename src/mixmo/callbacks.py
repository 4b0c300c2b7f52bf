"""What happens around the training steps: rows of metrics, the progress bar, the average of the weights."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar
from timm.utils import ModelEmaV3

from mixmo.network import MixMo
from mixmo.runs import Run
from mixmo.training import Training


class EpochLog(Callback):
    """Writes a row of ``metrics.csv`` for each epoch, tells the loggers and prints a line."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.started = time.perf_counter()

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
        self.run.append_metrics(row)
        for logger in trainer.loggers:
            logger.log_metrics(measured, trainer.global_step)
        print(f"epoch {row['epoch']}/{trainer.max_epochs}  {summarise(measured)}", flush=True)


def summarise(measured: dict[str, float]) -> str:
    """Return an epoch's figures in one line; accuracies in %, members in brackets.

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
    """Lightning's bar, which looks at the figures only when they are new: each look waits for the device.

    Args:
        training: What is trained; counts its reports.
    """

    def __init__(self, training: Training) -> None:
        super().__init__()
        self._training, self._reports = training, -1
        self._shown: dict[str, Any] = {}

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return the figures behind the bar."""
        if self._training.reports != self._reports or not trainer.training:
            self._reports, self._shown = self._training.reports, super().get_metrics(trainer, pl_module)
        return self._shown


class Averaging(Callback):
    """Keeps the exponential moving average of the weights; it is what is validated, kept and tested.

    A checkpoint's ``state_dict`` is the average; the weights that training goes on from stand beside it. Step t has
    the decay min(decay, 1 - 1 / t), so that the average is the plain mean of the weights until it is long enough.

    Args:
        net: The network that is trained.
        decay: Share of the old average that stays at each step.
    """

    def __init__(self, net: MixMo, decay: float) -> None:
        self.net, self.average = net, ModelEmaV3(net, decay, use_warmup=True, warmup_power=1.0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Follow the network to its device."""
        self.average.to(pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Move the average towards the weights."""
        self.average.update(self.net, trainer.global_step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the average in the network's place."""
        self._swap()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the network its weights back."""
        self._swap()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep both."""
        checkpoint["trained_state_dict"] = checkpoint["state_dict"]
        average = self.average.get_submodule("module").state_dict(prefix="net.")
        checkpoint["state_dict"] = average

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from both; the network has been given the average by now."""
        self.average.get_submodule("module").load_state_dict(self.net.state_dict())
        pl_module.load_state_dict(checkpoint["trained_state_dict"])

    def _swap(self) -> None:
        theirs = self.net.state_dict()
        for name, tensor in self.average.get_submodule("module").state_dict().items():
            kept = tensor.clone()
            tensor.copy_(theirs[name])
            theirs[name].copy_(kept)
