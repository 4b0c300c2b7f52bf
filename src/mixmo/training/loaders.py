"""Data loaders for training, as a LightningDataModule."""

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
    """Loaders of a run's training and validation images."""

    def __init__(self, data: DataModule, num_members: int) -> None:
        super().__init__()
        self.data, self.images = data, data.train
        self.start = (0, 0)  # epoch and batch within it
        self.copies = data.settings.batch_repetition * num_members

    def check_shared_memory(self, devices: int, nodes: int) -> None:
        """Raise if workers' batches do not fit into a node's shared memory, for each loader alone."""
        settings = self.data.settings
        distinct = settings.batch_size // settings.batch_repetition // (devices * nodes)
        check_shared_memory(self.data.train, settings, distinct, devices, self.copies)
        if self.data.validation is not None:
            check_shared_memory(self.data.validation, settings, settings.evaluation_size, devices)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of this rank's training images."""
        self.images = self.images.to(self._device())
        epoch, batch = self.start
        return self._open(epoch, start=batch)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the loader of this rank's validation images, if there are any."""
        if self.data.validation is None:
            return []
        return build_evaluation_loader(self.data.validation, self.data.settings, self._device(), ranks.rank_and_size())

    def sample_batches(self, epoch: int, batches: int) -> Iterator[DistinctBatch]:
        """Yield global batches of training images on the device, in another order than the epoch's."""
        device = self._device()
        for batch in self._open(epoch, stream="statistics", batches=batches):
            yield ranks.gather_batch(DistinctBatch(*(part.to(device) for part in batch)))

    def _open(self, epoch: int, **options: Any) -> DataLoader[Any]:
        """Return a loader of this rank's part of an epoch's batches."""
        return build_train_loader(
            self.images, self.data.settings, self.data.seed, self._device(), epoch, part=ranks.rank_and_size(),
            copies=self.copies, **options,
        )  # fmt: skip

    def _device(self) -> torch.device:
        assert self.trainer is not None
        return self.trainer.strategy.root_device
