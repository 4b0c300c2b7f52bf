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

from mixmo.batch_mixing import BatchMixer, MixedBatch
from mixmo.errors import InputError
from mixmo.network import MixMo
from mixmo.seeding import seed_for


class MixMoModule(L.LightningModule):
    """Trains a network on mixtures of a loader's batches, and validates the ensemble on unmixed images.

    Every draw of a step is a function of (seed, step), so a resumed training continues as it would have, if its loader
    does. Logs ``train_loss``, and ``val_accuracy``, ``val_nll`` and each member's ``val_member_0_accuracy`` … (in
    testing ``test_…``); with ``BatchMixer(…, multi_label=True)`` ``val_label_accuracy`` …, the share of labels that are
    right, and ``val_bce``.

    Args:
        net: The network.
        mixer: Makes the mixtures and their loss.
        optimizer: Makes an optimiser from the network's parameters, such as ``partial(torch.optim.SGD, lr=0.1)``.
        scheduler: Makes a scheduler from the optimiser, stepped after each batch; ``None`` for a constant rate.
        seed: Seed of mixmo's draws; Lightning has its own.

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
        """Return the ensemble's logits (B, K) for images (B, C, H, W)."""
        logits: Tensor = self.net(images)
        return logits

    def configure_optimizers(self) -> Any:
        """Return the optimiser, with its scheduler if there is one."""
        optimizer = self.make_optimizer(self.net.parameters())
        if self.make_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.make_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of the mixtures of a batch of images (U, C, H, W) and labels (U,)."""
        images, labels = batch
        mixed: MixedBatch = self._mix(images, labels, batch_idx)
        loss = mixed.loss(self.net(mixed.inputs, mixed.masks))
        size = len(mixed.inputs)
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # seeds are computed by NumPy
    def _mix(self, images: Tensor, labels: Tensor, batch_idx: int) -> MixedBatch:
        parts = self.trainer.accumulate_grad_batches
        number = self.global_step * parts + batch_idx % parts
        generator = torch.Generator(images.device).manual_seed(seed_for(self.seed, number) + self.global_rank)
        return self.mixer(images, labels, self.progress(), generator)

    def progress(self) -> float:
        """Return the share of training done; 0 if Lightning does not know its length."""
        steps = self.trainer.estimated_stepping_batches
        return min(1.0, self.global_step / steps) if 0 < steps < float("inf") else 0.0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score the ensemble and each member on a batch of images and labels of loader ``dataloader_idx``."""
        self._score(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score the ensemble and each member on a batch of images and labels of loader ``dataloader_idx``."""
        self._score(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the members' logits (B, M, K) for a batch of images of loader ``dataloader_idx``, or of pairs."""
        return self.net.members(batch[0] if isinstance(batch, tuple | list) else batch)

    def _score(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        images, labels = batch
        members = self.net.members(images)
        average = members.mean(1)
        multi_label = self.mixer.multi_label
        name = "label_accuracy" if multi_label else "accuracy"
        numbers = labels.argmax(1) if labels.dim() == 2 else labels  # of probabilities (B, K)

        def accuracy(logits: Tensor) -> Tensor:
            right = (logits > 0) == (labels > 0.5) if multi_label else logits.argmax(1) == numbers
            return right.float().mean()

        scores = {name: accuracy(average)}
        if multi_label:
            scores["bce"] = binary_cross_entropy_with_logits(average, labels.float())
        else:
            scores["nll"] = cross_entropy(average, labels if labels.is_floating_point() else labels.long())
        scores |= {f"member_{number}_{name}": accuracy(logits) for number, logits in enumerate(members.unbind(1))}
        metrics = {f"{split}_{key}": value for key, value in scores.items()}
        self.log_dict(metrics, batch_size=len(images), prog_bar=True, sync_dist=True)


def read_loaders(module: L.LightningDataModule) -> list[Any]:
    """Return what the training, validation and test hooks of a LightningDataModule return; ``None`` without a hook."""
    module.prepare_data()
    module.setup("fit")
    loaders: list[Any] = [module.train_dataloader()]
    for name, stage in (("val_dataloader", "fit"), ("test_dataloader", "test")):
        overridden = getattr(type(module), name) is not getattr(L.LightningDataModule, name)
        if overridden and stage == "test":
            module.setup("test")
        loaders.append(getattr(module, name)() if overridden else None)
    loaders = [each[0] if isinstance(each, list | tuple) and len(each) == 1 else each for each in loaders]
    for split, loader in zip(("train", "val", "test"), loaders, strict=True):
        if isinstance(loader, list | tuple | dict):
            raise InputError(
                f"{split}_dataloader of {type(module).__name__} returns {len(loader)} loaders in a "
                f"{type(loader).__name__}; return one."
            )
    return loaders
