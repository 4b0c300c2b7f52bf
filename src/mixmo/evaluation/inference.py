"""Inference: a run's trained network, its datasets, and the logits of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mixmo.config.hardware import training_device
from mixmo.config.plan import make_plan
from mixmo.config.settings import DataSettings
from mixmo.data.batches import Augmentation
from mixmo.data.loading import (
    DistinctBatch,
    ImageSet,
    fingerprint_of_test,
    fingerprint_of_validation,
    load_test_images,
    load_validation_images,
)
from mixmo.errors import InputError
from mixmo.network import MixMo
from mixmo.runs import Run, load_checkpoint


@dataclass(frozen=True)
class Network:
    """A trained network, and what prepares images for it.

    Attributes:
        net: In evaluation mode, on the device.
        settings: The run's ``data`` section.
        augment: Its center crop and normalisation.
        device: Where to run it.
        epochs: Epochs it was trained for.
    """

    net: MixMo
    settings: DataSettings
    augment: Augmentation
    device: torch.device
    epochs: int


class TrainedRun:
    """A run to evaluate. Its configuration is parsed once; network and images are loaded once, when they are needed.

    Args:
        run: The run.
        checkpoint: ``last`` or ``best``.
        download: Whether what the network is built from may be downloaded.

    Attributes:
        config: The run's configuration, as it was asked for.
        settings: The same, typed, with what this machine resolves.
        device: The device that suits the run on this machine.

    Raises:
        MissingError: if there is no such run.
        InputError: if its configuration is damaged.
    """

    def __init__(self, run: Run, checkpoint: str = "last", download: bool = False) -> None:
        self.run, self.checkpoint, self.download = run, checkpoint, download
        self.config = run.config()
        plan = make_plan(self.config)
        self.settings, self.device = plan.settings, training_device(plan.trainer["accelerator"])
        self._fingerprints: dict[str, str] = {}

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the checkpoint's file, in hexadecimal."""
        return hashlib.sha256(self.run.checkpoint_file(self.checkpoint).read_bytes()).hexdigest()

    @cached_property
    def network(self) -> Network:
        """The network of the checkpoint.

        Raises:
            MissingError: if the checkpoint is missing.
            InputError: if it is damaged or of another network.
        """
        net, epochs = load_checkpoint(self.run, self.checkpoint, self.download)
        net = net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Network(net, self.settings.data, Augmentation(self.settings.data), self.device, epochs)

    @cached_property
    def test(self) -> tuple[ImageSet, list[str]]:
        """The test images, and the K class names.

        Raises:
            MissingError: if the dataset is missing.
            InputError: if it is damaged, or has another number of classes than the network was trained on.
        """
        images, classes = load_test_images(self.settings.data)
        self._check_classes(classes)
        return images, classes

    def images(self, dataset: str) -> tuple[ImageSet, list[str]]:
        """Return the images of a dataset and the names of its classes.

        Args:
            dataset: ``test``, ``validation`` (as split off for training), or the name of another dataset, whose test
                images are brought to the input size of the run's.

        Raises:
            MissingError: if the dataset is missing.
            InputError: if it is damaged, or there is no validation set.
        """
        if dataset == "test":
            return self.test
        if dataset != "validation":
            return load_test_images(self.settings.data, dataset)
        images, classes = load_validation_images(self.settings.data, self.settings.seed)
        self._check_classes(classes)
        return images, classes

    def fingerprint(self, dataset: str) -> str:
        """Return what tells whether the images of a dataset (:meth:`images`) changed; none is decoded.

        Args:
            dataset: As for :meth:`images`.

        Raises:
            MissingError: if the dataset is missing.
            InputError: if it is damaged, or there is no validation set.
        """
        if dataset not in self._fingerprints:
            data = self.settings.data
            if dataset == "validation":
                found = fingerprint_of_validation(data, self.settings.seed)
            elif dataset == "test":
                found = fingerprint_of_test(data)
            else:  # resized to the input size, which can depend on the run's own images
                found = f"{self.fingerprint('test')} {fingerprint_of_test(data, dataset)}"
            self._fingerprints[dataset] = found
        return self._fingerprints[dataset]

    def _check_classes(self, classes: Sequence[str]) -> None:
        """Refuse a dataset whose number of classes has changed since the run was trained."""
        trained = self.network.net.num_classes
        if len(classes) != trained:
            raise InputError(
                f"{self.settings.data.name!r} has {len(classes)} classes, but {self.run.path} was trained on {trained}."
            )


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a network computes in a precision, ``32-true`` or ``bf16-mixed``.

    Example:
        >>> with autocast(torch.device("cpu"), "bf16-mixed"):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.bfloat16
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


@torch.inference_mode()
def predict_logits(
    net: torch.nn.Module, batches: Iterable[DistinctBatch], augment: Augmentation, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return logits (N, M, K) and targets (N,) on the CPU for batches of images, in order.

    The logits (N, K) of a plain network are those of one member.

    Args:
        net: A :class:`~mixmo.MixMo` or a plain network, in evaluation mode.
        batches: From ``mixmo.data.loading.evaluation_loader``.
        augment: Its center crop and normalisation are used.
        device: Where ``net`` is.
    """
    logits, targets = [], []
    for images, labels, index in batches:
        images, labels, index = images.to(device), labels.to(device), index.to(device)
        output = net(augment.center(images, index)).float()
        logits.append((output if isinstance(net, MixMo) else output[:, None]).cpu())
        targets.append(labels[index].cpu())
    return torch.cat(logits), torch.cat(targets)
