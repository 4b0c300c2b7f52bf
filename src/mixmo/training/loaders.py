"""Data loaders of a training, as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from mixmo.config.data_settings import DataSettings
from mixmo.data.module import DataModule
from mixmo.data.sets import DistinctBatch, build_evaluation_loader, build_train_loader, check_shared_memory
from mixmo.training import ranks


class Loaders(L.LightningDataModule):
    """Batches of a run's images, on the device of its training.

    Args:
        data: The run's data.
        settings: Its settings.
        seed: The run's seed.
        num_members: M.

    Attributes:
        begun: The epoch and the batch within it that training begins with.
    """

    def __init__(self, data: DataModule, settings: DataSettings, seed: int, num_members: int) -> None:
        super().__init__()
        self.copies = settings.batch_repetition * num_members
        self.data, self.settings, self.seed = data, settings, seed
        self.images, self.begun = data.train, (0, 0)

    def check_shared_memory(self, devices: int, nodes: int) -> None:
        """Refuse batches that workers cannot hand over in the shared memory of a node; loaders take turns.

        Args:
            devices: Ranks on each node.
            nodes: Nodes.

        Raises:
            InputError: if they do not fit.
        """
        own = self.settings
        distinct = own.batch_size // own.batch_repetition // (devices * nodes)
        check_shared_memory(self.data.train, own, distinct, devices, self.copies)
        if self.data.validation is not None:
            check_shared_memory(self.data.validation, own, own.evaluation_size, devices)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of training steps."""
        device = self._device()
        self.images = self.images.to(device)
        epoch, start = self.begun
        return build_train_loader(
            self.images, self.settings, self.seed, device, epoch, start=start, part=ranks.part(), copies=self.copies
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the loader of this rank's validation images, if there are any."""
        if self.data.validation is None:
            return []
        return build_evaluation_loader(self.data.validation, self.settings, self._device(), ranks.part())

    def samples(self, epoch: int, batches: int) -> Iterator[DistinctBatch]:
        """Yield global batches of an epoch's training images, in an order of their own, on the device."""
        device = self._device()
        loader = build_train_loader(
            self.images, self.settings, self.seed, device, epoch, "statistics", batches, part=ranks.part(),
            copies=self.copies,
        )  # fmt: skip
        for batch in loader:
            yield ranks.gather(DistinctBatch(*(part.to(device) for part in batch)))

    def _device(self) -> torch.device:
        assert self.trainer is not None
        return self.trainer.strategy.root_device
