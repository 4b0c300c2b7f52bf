"""Inference with a trained run on its datasets."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixmo import __version__
from mixmo.config.hardware import training_device
from mixmo.config.settings import Settings, neutral_settings
from mixmo.data.batches import CenterCrop
from mixmo.data.module import DataModule
from mixmo.data.sets import DistinctBatch, ImageSet
from mixmo.errors import InputError
from mixmo.header import Header
from mixmo.loading import load_checkpoint
from mixmo.network import MixMo
from mixmo.runs import RunFolder

log = logging.getLogger("mixmo")


class Network(NamedTuple):
    """A trained network, and what prepares images for it.

    Attributes:
        net: In evaluation mode, on the device.
        augment: Its center crop and normalisation.
        device: Where to run it.
        epochs: Epochs it was trained for.
        classes: The K class names.
    """

    net: MixMo
    augment: CenterCrop
    device: torch.device
    epochs: int
    classes: list[str]


class TrainedRun:
    """A run to predict with or to evaluate; its network, settings and images are opened once, when they are needed.

    The network is what the checkpoint's header says; only the images it was trained and tested on are the settings'.

    Args:
        run: The run.
        checkpoint: ``last`` or ``best``.
        download: Whether the network's backbone and datasets may be downloaded; the run's folder does not decide.
        option: What allows that in the command at hand, for errors.
        data: Images that a program gives, in place of those that the run's settings name.
        module: Its backbone, where that was a program's own module.

    Attributes:
        header: What the checkpoint says of the network.
        device: The device that suits the run on this machine: that of ``trainer.accelerator``, where it can be read.

    Raises:
        MissingError: if there is no such run.
    """

    def __init__(
        self,
        run: RunFolder,
        checkpoint: str = "last",
        download: bool = False,
        option: str = "--download",
        data: DataModule | None = None,
        module: nn.Module | None = None,
    ) -> None:
        self.run, self.checkpoint, self.download, self.module = run.require(), checkpoint, download, module
        self.option, self.given, self.device = option, data, training_device(run.accelerator())

    @cached_property
    def settings(self) -> Settings:
        """The run's settings, those of its network as the header has them; open ones follow from this machine.

        Raises:
            MissingError: if the run has lost its configuration.
            InputError: if that is damaged.
        """
        return self.run.settings(self.checkpoint)

    @cached_property
    def data(self) -> DataModule:
        """The run's images."""
        own = replace(self.settings.data, download=self.download)
        return self.given or DataModule(own, self.settings.seed, option=self.option)

    @property
    def header(self) -> Header:
        """What the checkpoint says of the network."""
        return self.run.header(self.checkpoint)

    def tell_of_changes(self) -> None:
        """Warn where ``config.yaml`` is no longer what the network was trained with."""
        if found := self.run.differences(self.checkpoint):
            log.warning("%s has changed since training: %s; the network's own settings are used.",
                        self.run.config_file, "; ".join(found))  # fmt: skip

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the checkpoint's file, in hexadecimal."""
        return self.run.digest(self.checkpoint)

    @cached_property
    def network(self) -> Network:
        """The network of the checkpoint.

        Raises:
            MissingError: if the checkpoint is missing.
            InputError: if it is damaged or of another network.
        """
        loaded = load_checkpoint(self.run, self.checkpoint, self.download, self.module)
        net = loaded.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Network(net, CenterCrop(self.header.data), self.device, loaded.epochs, self.header.classes)

    @property
    def data_settings(self) -> dict[str, Any]:
        """What predictions depend on of the ``data`` section; where images are decoded in memory changes none."""
        free = neutral_settings()
        return {key: value for key, value in asdict(self.settings.data).items() if f"data.{key}" not in free}

    def images(self, dataset: str) -> tuple[ImageSet, list[str]]:
        """Return the images of a dataset and the names of its classes; each is opened and decoded once.

        Args:
            dataset: ``test``, ``validation`` (as split off for training), or the name of another dataset, whose test
                images are brought to the input size of the run's.

        Raises:
            MissingError: if the dataset is missing.
            InputError: if it is damaged, there is no validation set, or the run's own classes are not as many as the
                network was trained on.
        """
        if dataset not in ("test", "validation"):
            if self.settings.data.own_transforms:
                raise InputError(
                    f"{dataset!r} would not be prepared as the images of {self.run.path} are, by a Dataset's own "
                    "transforms."
                )
            return self.data.other(dataset)
        self._check_drawn(dataset)
        images = self.data.test if dataset == "test" else self.data.validation
        if images is None:
            raise InputError("there is no validation set: data.validation is 0.")
        classes, trained = self.data.classes, self.network.net.num_classes
        if len(classes) != trained:
            raise InputError(
                f"{self.settings.data.name!r} has {len(classes)} classes, but {self.run.path} was trained on {trained}."
            )
        return images, classes

    def _check_drawn(self, split: str) -> None:
        """Refuse images drawn from a dataset that has changed since: the network may have learned from them."""
        known = self.run.about().get("data")
        if not self.data.draws(split) or not isinstance(known, dict):
            return
        if known.get("fingerprint") != self.data.fingerprint("train", times=False):
            purpose = "testing" if split == "test" else "validation"
            raise InputError(
                f"{self.settings.data.name!r} has changed since {self.run.path} was trained: other images would be "
                f"drawn for {purpose}, which it may have learned from; bring it back (split.csv lists it), or give it "
                f"a {split} folder."
            )

    def depends_on(self, dataset: str) -> dict[str, Any]:
        """Return what results of the network on a dataset (:meth:`images`) depend on, as JSON can hold it."""
        fingerprint = self.fingerprint(dataset)
        if dataset not in ("test", "validation"):
            fingerprint = f"{self.data.size} {fingerprint}"  # resized to the run's input size
        return {
            "version": __version__,
            "checkpoint": self.digest,
            "dataset": dataset,
            "data": self.data_settings,
            "fingerprint": fingerprint,
        }

    def fingerprint(self, dataset: str, times: bool = True) -> str:
        """Return what tells whether the images of a dataset (:meth:`images`) changed; nothing is decoded.

        Args:
            dataset: As for :meth:`images`.
            times: Whether files' modification times count.

        Raises:
            MissingError: if the dataset is missing.
            InputError: if it is damaged, or there is no validation set.
        """
        if dataset in ("test", "validation"):
            return self.data.fingerprint(dataset, times=times)
        return self.data.fingerprint("test", dataset, times)


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
    net: torch.nn.Module, batches: Iterable[DistinctBatch], augment: CenterCrop, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return logits (N, M, K) and targets (N,) on the CPU for batches of images, in order.

    The logits (N, K) of a plain network are those of one member.

    Args:
        net: A :class:`~mixmo.MixMo` or a plain network, in evaluation mode.
        batches: From ``mixmo.data.sets.build_evaluation_loader``.
        augment: Its center crop and normalisation are used.
        device: Where ``net`` is.
    """
    logits, targets = [], []
    for images, labels, index in batches:
        images, labels, index = images.to(device), labels.to(device), index.to(device)
        prepared = augment.center(images, index)
        output = net.members(prepared) if isinstance(net, MixMo) else net(prepared)[:, None]
        logits.append(output.float().cpu())
        targets.append(labels[index].cpu())
    return torch.cat(logits), torch.cat(targets)
