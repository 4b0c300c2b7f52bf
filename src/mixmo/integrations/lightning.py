"""A LightningModule for loaders of (images, labels)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mixmo.batch_mixing import BatchMixer
from mixmo.network import MixMo
from mixmo.seeding import seed_for


class MixMoModule(L.LightningModule):
    """Trains a network on mixtures of a loader's batches, and validates the ensemble on images as they are.

    Every draw of a step is a function of (seed, step): a training that Lightning resumes continues the same, as far as
    its loader does. ``val_accuracy``, ``val_nll`` and each member's ``val_member_0_accuracy`` … are logged, and
    ``train_loss``; in testing ``test_…``. Of several labels (``BatchMixer(…, multi_label=True)``) these are
    ``val_label_accuracy`` …, the share of labels that are right, and ``val_bce``.

    Args:
        net: The network.
        mixer: Makes the mixtures and their loss.
        optimizer: Makes the optimiser of the network's parameters, such as ``partial(torch.optim.SGD, lr=0.1)``.
        scheduler: Makes a scheduler of the optimiser, which steps after each batch; ``None`` keeps the rate.
        seed: Of mixmo's draws; Lightning has its own.

    Example:
        >>> from functools import partial
        >>> net = MixMo("wide_resnet10_1", num_members=2, num_classes=10)
        >>> optimizer = partial(torch.optim.SGD, lr=0.1)
        >>> module = MixMoModule(net, BatchMixer(net, "cut", batch_repetition=2), optimizer=optimizer)
        >>> images = torch.utils.data.TensorDataset(torch.zeros(8, 3, 32, 32), torch.arange(8))
        >>> loader = torch.utils.data.DataLoader(images, batch_size=4)
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> L.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet).fit(module, loader)
        >>> module(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        net: MixMo,
        mixer: BatchMixer,
        optimizer: Callable[[Iterable[Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.net, self.mixer, self.seed = net, mixer, seed
        self.make_optimizer, self.make_scheduler = optimizer, scheduler

    def forward(self, images: Tensor) -> Tensor:
        """Return the ensemble's logits (B, K) of images (B, C, H, W)."""
        logits: Tensor = self.net(images)
        return logits

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its scheduler."""
        optimizer = self.make_optimizer(self.net.parameters())
        if self.make_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.make_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of the mixtures of a batch of images (U, C, H, W) and labels (U,)."""
        images, labels = batch
        number = (
            self.global_step * self.trainer.accumulate_grad_batches + batch_idx % self.trainer.accumulate_grad_batches
        )
        generator = torch.Generator(images.device).manual_seed(seed_for(self.seed, number) + self.global_rank)
        mixed = self.mixer(images, labels, self.progress(), generator)
        loss = mixed.loss(self.net(mixed.inputs, mixed.masks))
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(mixed.inputs))
        return loss

    def progress(self) -> float:
        """Return the share of the training that is done; 0 where Lightning does not know how long it is."""
        steps = self.trainer.estimated_stepping_batches
        return min(1.0, self.global_step / steps) if 0 < steps < float("inf") else 0.0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Score the ensemble and each member on a batch of images (B, C, H, W) and labels (B,)."""
        self._score(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Score the ensemble and each member on a batch of images (B, C, H, W) and labels (B,)."""
        self._score(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the members' logits (B, M, K) of a batch of images (B, C, H, W), with or without labels."""
        return self.net.members(batch[0] if isinstance(batch, tuple | list) else batch)

    def _score(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        images, labels = batch
        members = self.net.members(images)
        average = members.mean(1)
        several = self.mixer.multi_label
        name = "label_accuracy" if several else "accuracy"

        def accuracy(logits: Tensor) -> Tensor:
            right = (logits > 0) == (labels > 0.5) if several else logits.argmax(1) == labels
            return right.float().mean()

        found = {name: accuracy(average)}
        if several:
            found["bce"] = binary_cross_entropy_with_logits(average, labels.float())
        else:
            found["nll"] = cross_entropy(average, labels)
        found |= {f"member_{number}_{name}": accuracy(logits) for number, logits in enumerate(members.unbind(1))}
        own = {f"{split}_{key}": value for key, value in found.items()}
        self.log_dict(own, batch_size=len(images), prog_bar=True, sync_dist=True)
