"""One training step of MixMo, in reading order, as a LightningModule."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from mixmo.batches import BatchMaker
from mixmo.data import DistinctBatch
from mixmo.mixing import mixed_cross_entropy
from mixmo.network import MixMo
from mixmo.optimizers import Schedule, build_optimizer, warmup_steps
from mixmo.seeding import seed_for
from mixmo.settings import Settings


class TrainingError(Exception):
    """Training cannot go on; the message says at which step, and what to do."""


class Training(L.LightningModule):
    """Trains a network on batches of distinct images.

    Args:
        net: The network.
        maker: Makes mixtures of distinct images.
        settings: The run's settings: seed, optimiser, schedule.
        num_images: N, images of the training set, for the published length of the warm-up.
        log_every: Steps between two looks at the loss; in between the host never waits for the device.

    Raises:
        TrainingError: from ``fit``, if the loss is not finite.
    """

    loss_sum: Tensor
    accuracy_sum: Tensor
    bad_step: Tensor

    def __init__(self, net: MixMo, maker: BatchMaker, settings: Settings, num_images: int, log_every: int = 50) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.maker, self.settings, self.num_images, self.log_every = maker, settings, num_images, log_every
        self.peak_lr = settings.optimizer.peak_lr(settings.data.batch_repetition)
        self.generator: torch.Generator | None = None
        self.register_buffer("loss_sum", torch.zeros(()), persistent=False)
        self.register_buffer("accuracy_sum", torch.zeros(net.num_members), persistent=False)
        self.register_buffer("bad_step", torch.tensor(-1), persistent=False)
        self._seen, self._since = 0, 0.0

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimiser and the learning rate at every step."""
        self.schedule = self._build_schedule()
        own = self.settings.optimizer
        optimizer = build_optimizer(
            self.net, own.name, self.peak_lr, own.weight_decay, own.momentum, own.decay_all, **own.options
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _build_schedule(self) -> Schedule:
        data, own = self.settings.data, self.settings.schedule
        warmup = own.warmup_steps
        if warmup is None:
            warmup = warmup_steps(self.num_images, data.batch_size, data.batch_repetition, own.warmup_epochs)
        epochs = int(self.trainer.max_epochs or 1)
        steps = int(self.trainer.estimated_stepping_batches) // epochs
        return Schedule(own.kind, steps, epochs, warmup, tuple(own.drops), own.factor)

    def training_step(self, batch: DistinctBatch, batch_idx: int) -> Tensor:
        """Return the loss of one step; everything random in it is a function of (seed, step)."""
        step = self.global_step
        torch.manual_seed(seed_for(self.settings.seed, step, "global"))  # dropout and the like
        if self.generator is None:
            self.generator = torch.Generator(self.device)
        self.generator.manual_seed(seed_for(self.settings.seed, step))
        progress = (self.current_epoch + 1) / self.schedule.epochs
        inputs, masks, targets, weights = self.maker(batch, self.generator, progress)
        logits = self.net(inputs, masks)
        loss = mixed_cross_entropy(logits, targets, weights)
        self._watch(loss.detach(), logits.detach(), targets)
        return loss

    def _watch(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Sum up the epoch and note the first bad step, on the device; look at them now and then."""
        step = self.global_step
        classes = targets.argmax(2) if targets.is_floating_point() else targets
        self.loss_sum += loss
        self.accuracy_sum += (logits.argmax(2) == classes).float().mean(0)
        self.bad_step.copy_(torch.where((self.bad_step < 0) & ~loss.isfinite(), step, self.bad_step))
        self._seen += 1
        if self._seen % self.log_every and not self.trainer.is_last_batch:
            return
        self.check_finite()
        report = {"train_loss": self.loss_sum / self._seen}
        for member, total in enumerate(self.accuracy_sum):
            report[f"train_member_{member}_accuracy"] = total / self._seen
        speed = self._seen * len(logits) / (time.perf_counter() - self._since)
        self.log_dict(report | {"images_per_second": speed}, prog_bar=True, logger=False)
        self.log("lr", self.peak_lr * self.schedule(step), logger=False)

    def check_finite(self) -> None:
        """Stop if any loss so far was not finite."""
        if (step := int(self.bad_step)) >= 0:
            lr = self.peak_lr * self.schedule(step)
            raise TrainingError(
                f"the loss was not finite at step {step}, with learning rate {lr:.4g}; the last checkpoint was "
                "written before it. Lower the learning rate or lengthen the warm-up."
            )

    def on_train_epoch_start(self) -> None:
        """Measure the epoch from here."""
        self.loss_sum.zero_()
        self.accuracy_sum.zero_()
        self._seen, self._since = 0, time.perf_counter()

    def on_train_epoch_end(self) -> None:
        """Never let a checkpoint hold weights after a loss that was not finite."""
        self.check_finite()

    def on_validation_start(self) -> None:
        """Likewise before validation."""
        self.check_finite()

    def validation_step(self, batch: DistinctBatch, batch_idx: int) -> None:
        """Score the ensemble (logit average) and each member on images held out of the training set."""
        images, labels, index = batch
        targets = labels[index]
        logits = self.net(self.maker.augment.center(images, index)).float()
        average = logits.mean(1)
        scores = {
            "accuracy": (average.argmax(1) == targets).float(),
            "nll": torch.nn.functional.cross_entropy(average, targets, reduction="none"),
        }
        for member in range(self.net.num_members):
            scores[f"member_{member}_accuracy"] = (logits[:, member].argmax(1) == targets).float()
        for name, values in scores.items():
            shown = name != "nll"
            self.log(f"val_{name}", values.mean(), batch_size=len(values), prog_bar=shown, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what inference needs beside the weights."""
        checkpoint["num_classes"] = self.net.num_classes
