"""The training step, as a LightningModule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim.swa_utils import get_ema_multi_avg_fn, update_bn

from mixmo.batch_mixing import WHOLE, MixedBatch
from mixmo.checkpoints import finished_epochs
from mixmo.config.settings import Settings
from mixmo.data.batches import Augmentation
from mixmo.data.image_sets import DistinctBatch
from mixmo.errors import TrainingError
from mixmo.metrics.multi_label import average_precisions
from mixmo.network import MixMo
from mixmo.seeding import generator_for, seed_for
from mixmo.training import ranks
from mixmo.training.build import build_mixer, describe
from mixmo.training.loaders import Loaders
from mixmo.training.optimizers import FrozenCore, Schedule, build_optimizer, is_setting, perturb_weights, warmup_steps
from mixmo.training.sums import EpochSums

LOG_EVERY = 50
"""Steps between two reads of the loss, for which the host waits for the device."""
STATISTICS_BATCHES = 50
"""Batches from which the batch-norm statistics of averaged weights are estimated."""


class Training(L.LightningModule):
    """Trains a network on batches of distinct images.

    Attributes:
        average: The exponential moving average of the network, which is validated and tested, or ``None``.
        reports: How often the loss was read, by which a progress bar detects a new value.
    """

    def __init__(self, settings: Settings, net: MixMo, loaders: Loaders) -> None:
        super().__init__()
        self.settings, self.sample_batches, self.num_images = settings, loaders.sample_batches, len(loaders.data.train)
        self.mixer, self.header = build_mixer(settings, net, loaders.data), describe(settings, loaders.data)
        self.augment = Augmentation(settings.data)
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.core = FrozenCore(self.net) if settings.optimizer.freeze_epochs else None
        self.average = copy.deepcopy(self.net).requires_grad_(False) if settings.optimizer.ema_decay else None
        data, schedule = settings.data, settings.schedule
        published = warmup_steps(self.num_images, data.batch_size, data.batch_repetition, schedule.warmup_epochs)
        self.warmup = published if schedule.warmup_steps is None else schedule.warmup_steps
        self.accumulate = settings.trainer.accumulate
        self.peak_lr = settings.optimizer.peak_lr(data.batch_repetition)
        self.reports = 0
        self.multi_label = data.multi_label
        self.sums = EpochSums(net.num_members, self.multi_label)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # few validation images on many ranks
        self._unfinished: dict[str, Any] | None = None
        self._perturbed, self._ready_at = False, -1
        # One graph for all steps and one for evaluation: shapes never change (see `_evaluate_batch`).
        compiled = partial(torch.compile, dynamic=False) if settings.model.compile else lambda function: function
        self._compiled_loss = compiled(self._logits_and_loss)
        self._compiled_net = compiled(self._validation_logits)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser, and make the schedule from which :meth:`optimizer_step` takes the learning rate."""
        own, frozen = self.settings.schedule, self.settings.optimizer.freeze_epochs
        epochs = int(self.trainer.max_epochs or 1)
        steps = int(self.trainer.estimated_stepping_batches) // epochs
        self.schedule = Schedule(own.kind, steps, epochs, self.warmup, tuple(own.milestones), own.gamma)
        if self.core:
            self.core = FrozenCore(self.net)  # SyncBatchNorm may have replaced batch norms
        self.frozen_steps = math.inf if frozen == "all" else round(frozen * steps)
        return self.build_optimizer()

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Build the optimiser of the settings; raise ``InputError`` for an unknown name or option."""
        own = self.settings.optimizer
        net = self.net if own.layer_decay is None else self.net.backbone  # for timm's layer groups
        return build_optimizer(net, own, self.peak_lr)

    def training_step(self, batch: DistinctBatch, batch_idx: int) -> Tensor:
        """Return the loss of one step; everything random in it is a function of (seed, step)."""
        torch.manual_seed(seed_for(self.settings.seed, self.global_step, "global") + ranks.rank())  # dropout
        if len(batch.chosen) < self.settings.data.batch_size // self.settings.data.batch_repetition:
            batch = ranks.gather_batch(batch)
        self.net.zero_grad()
        losses: list[Tensor] = []
        logits, targets = [], []
        for part in self._parts():
            generator = generator_for(self.settings.seed, self.global_step, device=self.device)
            mixed = self._mix(batch, generator, part)
            part_logits, loss = self._compiled_loss(mixed)
            if losses:
                self._scale(losses[-1]).backward()  # of all parts but the last, of which Lightning does it
            losses.append(loss / self.accumulate)
            logits.append(part_logits.detach())
            targets.append(mixed.targets)
        if not self._perturbed:
            self.sums.add(torch.stack(losses).detach().sum(), torch.cat(logits), torch.cat(targets))
        return losses[-1]

    def _scaler(self) -> GradScaler | None:
        """Return float16's loss scaler, which skips a step whose scaled gradient overflows, or ``None``."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _scale(self, loss: Tensor) -> Tensor:
        scaler = self._scaler()
        return loss if scaler is None else scaler.scale(loss)

    def _parts(self) -> list[slice]:
        """Return the slices of the global batch's mixtures that this rank computes, one for each part."""
        parts = self.accumulate * ranks.size()
        size, first = self.settings.data.batch_size // parts, self.accumulate * ranks.rank()
        return [slice(size * number, size * (number + 1)) for number in range(first, first + self.accumulate)]

    def _mix(self, batch: DistinctBatch, generator: torch.Generator, part: slice = WHOLE) -> MixedBatch:
        """Return a part of the step's mixtures, with its p and rho."""
        source = self.augment.source(batch, generator)
        return self.mixer.mix(source, generator, self.progress(), self.mask_progress(), part)

    def progress(self) -> float:
        """Return the share of training steps done."""
        return min(1.0, self.global_step / (self.schedule.steps_per_epoch * self.schedule.epochs))

    def mask_progress(self) -> float:
        """Return the progress for the schedule of p: the share of steps, or of epochs counted from 1 as published."""
        if self.settings.mixer.progress == "epochs":
            return (self.current_epoch + 1) / self.schedule.epochs
        return self.progress()

    def _logits_and_loss(self, mixed: MixedBatch) -> tuple[Tensor, Tensor]:
        logits = self.net(mixed.inputs, mixed.masks)
        return logits, mixed.loss(logits)

    def _validation_logits(self, images: Tensor) -> Tensor:
        return (self.average or self.net).members(images)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Every ``LOG_EVERY`` steps, check for non-finite losses and log running means."""
        if self.sums.steps % LOG_EVERY and not self.trainer.is_last_batch:
            return
        self.check_finite()
        self.reports += 1
        self.log_dict(self.sums.report(self.settings.data.batch_size), prog_bar=True, logger=False)
        self.log("lr", self.peak_lr * self.schedule(self.global_step - 1), logger=False)

    def check_finite(self) -> None:
        """Raise if any loss or gradient so far was not finite."""
        if (step := int(self.bad_step)) >= 0:
            lr = self.peak_lr * self.schedule(step)
            wider = "" if self._scaler() is None else ", or train in float32 (trainer.precision 32-true)"
            raise TrainingError(
                f"the loss or its gradient was not finite at step {step}, with learning rate {lr:.4g}; the last "
                "checkpoint was written before it. Lower the learning rate, lengthen the warm-up, or clip the gradient "
                f"(trainer.gradient_clip_val 1){wider}."
            )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step at the schedule's learning rate; SAM computes the gradient again, at perturbed weights."""
        step = self.global_step
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * self.schedule(step)
        assert optimizer_closure is not None
        if self.settings.optimizer.sam_radius:
            optimizer_closure = partial(self._sam_closure, optimizer_closure)
        optimizer_closure = partial(self._with_finite_check, optimizer_closure, step)
        with self.core if self.core and step < self.frozen_steps else nullcontext():
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._move_average(step)

    def _with_finite_check(self, closure: Callable[[], Any], step: int) -> Any:
        """Record the first step whose loss or gradient is not finite."""
        loss = closure()
        norm = nn.utils.get_total_norm([each.grad for each in self.net.parameters() if each.grad is not None])
        allowed = norm.isfinite()
        if self._scaler() is not None:  # float16 skips steps that overflow
            allowed |= self._scale(torch.ones_like(norm)) > 1
        bad = ~(allowed & loss.detach().isfinite())
        self.bad_step.copy_(torch.where((self.bad_step < 0) & bad, step, self.bad_step))
        return loss

    def _sam_closure(self, closure: Callable[[], Any]) -> Any:
        """Return the loss at the weights, and compute gradients at the perturbed ones, for the same mixtures."""
        loss = closure()
        self._perturbed = True
        try:
            with perturb_weights(self.net, self.settings.optimizer.sam_radius):
                closure()
        finally:
            self._perturbed = False
        return loss

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: ``training_step`` clears the gradients; here they hold those of earlier parts."""

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients' norm; Lightning refuses fused optimisers because of float16."""
        if gradient_clip_val:
            scaler = self._scaler()
            if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
                scaler.unscale_(optimizer)  # Lightning does this for optimisers that are not fused
            nn.utils.clip_grad_norm_(self.net.parameters(), gradient_clip_val)

    def on_fit_start(self) -> None:
        """Allocate the number of the first step that is not finite, on the device."""
        self.bad_step = torch.tensor(-1, device=self.device)

    def on_train_start(self) -> None:
        """Restore the sums of a partial epoch."""
        if self._unfinished is not None:
            self.sums.begin(self.device, self._unfinished)

    def on_train_epoch_start(self) -> None:
        """Reset the sums and the timer."""
        self.sums.begin(self.device)

    def _move_average(self, step: int) -> None:
        """Move the average towards the weights, with decay min(decay, (1 + t) / (10 + t)) at step t; step 0 copies."""
        if self.average is not None:
            decay = min(self.settings.optimizer.ema_decay, (1 + step) / (10 + step)) if step else 0.0
            parameters = [list(net.parameters()) for net in (self.average, self.net)]
            get_ema_multi_avg_fn(decay)(*parameters, None)

    def sync_before_eval(self) -> None:
        """Before validating or saving: synchronise buffers, estimate the average's statistics, check finiteness."""
        self.check_finite()
        if self._ready_at == self.global_step:
            return
        self._ready_at = self.global_step
        ranks.average_buffers(self.net.buffers())
        self.estimate_statistics()
        for net, name in ((self.net, "network"), (self.average, "average of the weights")):
            if net is not None and not _is_finite(net):
                raise TrainingError(
                    f"the {name} has weights or statistics that are not finite after step {self.global_step}; the last "
                    "checkpoint was written before. Lower the learning rate or lengthen the warm-up."
                )

    def on_train_epoch_end(self) -> None:
        """Prepare for a checkpoint."""
        self.sync_before_eval()

    def on_validation_start(self) -> None:
        """Prepare for validation."""
        self.sync_before_eval()
        self.scores = torch.zeros(self.net.num_members + 3, device=self.device)
        self.validated: list[tuple[Tensor, Tensor]] = []

    def estimate_statistics(self) -> None:
        """Estimate batch-norm statistics for the averaged weights, from training mixtures.

        They are a function of the weights and (seed, step), as resuming needs.
        """
        if self.average is None:
            return
        for target, source in zip(self.average.buffers(), self.net.buffers(), strict=True):
            target.copy_(source)  # all but batch norms keep these
        if self.core and self.global_step <= self.frozen_steps:
            return  # frozen batch norms keep their initial statistics
        seed = seed_for(self.settings.seed, self.global_step, "estimate")
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator(self.device).manual_seed(seed)
        was_training = self.average.training
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            update_bn(self._mixtures(generator), _OnMixtures(self.average))  # type: ignore[arg-type]
        self.average.train(was_training)

    def _mixtures(self, generator: torch.Generator) -> Iterator[dict[str, MixedBatch]]:
        for batch in self.sample_batches(self.current_epoch, STATISTICS_BATCHES):
            yield {"mixed": self._mix(batch, generator)}  # update_bn takes the first element of a tuple

    def validation_step(self, batch: DistinctBatch, batch_idx: int) -> None:
        """Score the ensemble (logit average) and each member on validation images."""
        images, labels, index = batch
        targets = labels[index]
        logits = self._evaluate_batch(images, index)
        if self.multi_label:  # average precision needs all images
            self.validated.append((logits, targets))
            return
        average = logits.mean(1)
        correct = [(scores.argmax(1) == targets).sum() for scores in (average, *logits.unbind(1))]
        nll = nn.functional.cross_entropy(average, targets, reduction="sum")
        self.scores += torch.stack([*correct, nll, nll.new_tensor(len(targets))])

    def on_validation_epoch_end(self) -> None:
        """Log the means over the images of all ranks; mAP for several labels."""
        if self.multi_label:
            self._report_labels()
            return
        *scores, count = ranks.sum_over_ranks(self.scores)
        names = ["accuracy", *(f"member_{number}_accuracy" for number in range(self.net.num_members)), "nll"]
        for name, score in zip(names, scores, strict=True):
            self.log(f"val_{name}", score / count, prog_bar=name != "nll", logger=False)

    def _report_labels(self) -> None:
        members, classes = self.net.num_members, self.net.num_classes
        none = torch.zeros(0, members, classes), torch.zeros(0, classes, dtype=torch.uint8)  # few images on many ranks
        batches = zip((tensor.to(self.device) for tensor in none), *self.validated, strict=True)
        logits, targets = (ranks.gather_rows(torch.cat(tensors)).cpu() for tensors in batches)
        networks = {"": logits.mean(1)} | {f"member_{number}_": each for number, each in enumerate(logits.unbind(1))}
        for name, scores in networks.items():
            self.log(f"val_{name}map", average_precisions(scores, targets).nanmean(), prog_bar=True, logger=False)
        bce = nn.functional.binary_cross_entropy_with_logits(networks[""], targets.float())
        self.log("val_bce", bce, logger=False)

    def _evaluate_batch(self, images: Tensor, index: Tensor) -> Tensor:
        """Return logits of the images of ``index``; for a compiled network the last batch is padded."""
        padded, size = index, self.settings.data.evaluation_size
        if self.settings.model.compile and len(index) < size:
            padded = torch.cat([index, index[:1].expand(size - len(index))])
        logits: Tensor = self._compiled_net(self.augment.center(images, padded))
        return logits[: len(index)].float()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the header, and the sums of a partial epoch."""
        checkpoint["header"] = self.header.to_dict()
        if finished_epochs(checkpoint) == checkpoint["epoch"]:
            checkpoint["unfinished"] = self.sums.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the sums of a partial epoch; replace the optimiser's hyperparameters by the current settings."""
        self._unfinished = checkpoint.get("unfinished")
        checkpoint["lr_schedulers"] = []  # Lightning requires the key
        groups = checkpoint["optimizer_states"][0]["param_groups"]
        for group, current in zip(groups, self.build_optimizer().param_groups, strict=True):
            group |= {key: value for key, value in current.items() if is_setting(key)}


class _OnMixtures(nn.Module):
    """Adapts a network to torch's ``update_bn``."""

    def __init__(self, net: MixMo) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: dict[str, MixedBatch]) -> Tensor:
        """Return the logits of mixtures."""
        mixed = batch["mixed"]
        logits: Tensor = self.net(mixed.inputs, mixed.masks)
        return logits


def _is_finite(net: nn.Module) -> bool:
    """Return whether all weights and statistics are finite."""
    tensors = [*net.parameters(), *(each for each in net.buffers() if each.is_floating_point())]
    return bool(nn.utils.get_total_norm(tensors).isfinite())
