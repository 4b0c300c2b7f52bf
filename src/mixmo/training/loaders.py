"""Data loaders of a training, as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from mixmo.data.image_sets import DistinctBatch, build_evaluation_loader, build_train_loader, check_shared_memory
from mixmo.data.module import DataModule
from mixmo.training import ranks


class Loaders(L.LightningDataModule):
    """Batches of a run's images, on the device of its training."""

    def __init__(self, data: DataModule, num_members: int) -> None:
        super().__init__()
        self.data, self.images = data, data.train
        self.begun = (0, 0)  # the epoch, and the batch within it, that training begins with
        self.copies = data.settings.batch_repetition * num_members

    def check_shared_memory(self, devices: int, nodes: int) -> None:
        """Refuse batches that workers cannot hand over in the shared memory of a node; loaders take turns."""
        own = self.data.settings
        distinct = own.batch_size // own.batch_repetition // (devices * nodes)
        check_shared_memory(self.data.train, own, distinct, devices, self.copies)
        if self.data.validation is not None:
            check_shared_memory(self.data.validation, own, own.evaluation_size, devices)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of training steps."""
        self.images = self.images.to(self._device())
        epoch, start = self.begun
        return self._open(epoch, start=start)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the loader of this rank's validation images, if there are any."""
        if self.data.validation is None:
            return []
        return build_evaluation_loader(self.data.validation, self.data.settings, self._device(), ranks.part())

    def samples(self, epoch: int, batches: int) -> Iterator[DistinctBatch]:
        """Yield global batches of an epoch's training images, in an order of their own, on the device."""
        device = self._device()
        for batch in self._open(epoch, stream="statistics", batches=batches):
            yield ranks.gather(DistinctBatch(*(part.to(device) for part in batch)))

    def _open(self, epoch: int, **options: Any) -> DataLoader[Any]:
        """Return a loader of this rank's part of an epoch's batches."""
        return build_train_loader(
            self.images, self.data.settings, self.data.seed, self._device(), epoch, part=ranks.part(),
            copies=self.copies, **options,
        )  # fmt: skip

    def _device(self) -> torch.device:
        assert self.trainer is not None
        return self.trainer.strategy.root_device
