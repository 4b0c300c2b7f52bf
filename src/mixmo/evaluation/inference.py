"""Inference with a trained run on its datasets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixmo import __version__
from mixmo.config.hardware import training_device
from mixmo.config.settings import Settings, neutral_settings
from mixmo.data.batches import Augmentations, CenterCrop
from mixmo.data.image_sets import ImageSet
from mixmo.data.module import DataModule
from mixmo.errors import InputError
from mixmo.header import Header
from mixmo.loading import load_checkpoint
from mixmo.network import MixMo
from mixmo.runs import RunFolder

log = logging.getLogger("mixmo")


class TrainedRun:
    """A run to predict with or to evaluate; its network, settings and images are opened once, when they are needed.

    The checkpoint's header determines the network, the settings only the images it was trained and tested on.

    Args:
        folder: The run's folder.
        checkpoint: ``last`` or ``best``.
        download: Whether the network's backbone and datasets may be downloaded; the run's folder cannot allow it.
        option: How the current command allows that, for errors.
        data: Images that a program gives, in place of those that the run's settings name.
        module: Its backbone, where that was a program's own module.

    Raises:
        MissingError: if there is no such run.
    """

    def __init__(
        self,
        folder: RunFolder,
        checkpoint: str = "last",
        download: bool = False,
        option: str = "--download",
        data: DataModule | None = None,
        module: nn.Module | None = None,
    ) -> None:
        self.folder, self.checkpoint, self.download, self.module = folder.require(), checkpoint, download, module
        self.option, self.given = option, data

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    @cached_property
    def device(self) -> torch.device:
        """The run's device on this machine: that of ``trainer.accelerator``, where it can be read."""
        return training_device(self.folder.accelerator())

    @cached_property
    def settings(self) -> Settings:
        """The run's settings, its network's taken from the header; open ones follow from this machine."""
        return self.folder.settings(self.checkpoint)

    @cached_property
    def data(self) -> DataModule:
        """The run's images."""
        own = replace(self.settings.data, download=self.download)
        return self.given or DataModule(own, self.settings.seed, option=self.option)

    def reopen(self, checkpoint: str | None = None, download: bool | None = None) -> TrainedRun:
        """Return the run with another checkpoint or permission to download; itself if neither changes."""
        asked = (checkpoint or self.checkpoint, self.download if download is None else download)
        if asked == (self.checkpoint, self.download):
            return self
        return TrainedRun(self.folder, *asked, self.option, self.given, self.module)

    @cached_property
    def header(self) -> Header:
        """The checkpoint's description of the network."""
        return self.folder.header(self.checkpoint)

    def warn_of_changes(self) -> None:
        """Warn where ``config.yaml`` is no longer what the network was trained with."""
        if found := self.folder.differences(self.checkpoint):
            log.warning("%s has changed since training: %s; the network's own settings are used.",
                        self.folder.config_file, "; ".join(found))  # fmt: skip

    def warn_of_views(self, tta: Augmentations) -> None:
        """Warn where test-time augmentation shows views that training did not."""
        if tta == "flip" and not (self.settings.data.flip or self.settings.data.own_transforms):
            log.warning(
                "%s was trained without mirrored images (data.flip is false): tta flip may make it worse.", self.path
            )

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the checkpoint's file, in hexadecimal."""
        return self.folder.digest(self.checkpoint)

    @cached_property
    def network(self) -> MixMo:
        """The checkpoint's network, in evaluation mode, on the device; with averaged weights (EMA) if it has them.

        Raises:
            MissingError: if the checkpoint is missing.
            InputError: if it is damaged or of another network.
        """
        with torch.inference_mode(False):  # the first caller may only predict, the next train
            net = load_checkpoint(self.folder, self.checkpoint, self.download, self.module)
            return net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    @cached_property
    def crop(self) -> CenterCrop:
        """Prepares the network's images; made once, since it moves to the device."""
        return CenterCrop(self.header.data)

    def prepare(self, images: Tensor) -> Tensor:
        """Return images (B, H, W, C) uint8 of the run's size as the network sees them, (B, C, h, w) on its device."""
        return self.crop.center(images.to(self.device))

    @property
    def data_settings(self) -> dict[str, Any]:
        """The settings of the ``data`` section that predictions depend on."""
        free = neutral_settings()
        return {key: value for key, value in asdict(self.settings.data).items() if f"data.{key}" not in free}

    def images(self, dataset: str) -> tuple[ImageSet, list[str]]:
        """Return the images of a dataset and the names of its classes; each is opened and decoded once.

        ``test``, ``validation`` (as split off for training), or the name of another dataset, whose test images are
        resized to the run's input size.

        Raises:
            MissingError: if the dataset is missing.
            InputError: if it is damaged, there is no validation set, or the run's images have another number of classes
                than the network.
        """
        if dataset not in ("test", "validation"):
            if self.settings.data.own_transforms:
                raise InputError(
                    f"{dataset!r} cannot be prepared like the images of {self.path}, which a Dataset's own transforms "
                    "prepare."
                )
            return self.data.other(dataset)
        self._check_drawn(dataset)
        images = self.data.test if dataset == "test" else self.data.validation
        if images is None:
            raise InputError("there is no validation set: data.validation is 0.")
        classes, trained = self.data.classes, self.network.num_classes
        if len(classes) != trained:
            raise InputError(
                f"{self.settings.data.name!r} has {len(classes)} classes, but {self.path} was trained on {trained}."
            )
        return images, classes

    def _check_drawn(self, split: str) -> None:
        """Refuse images drawn from a dataset that has changed since: the network may have learned from them."""
        known = self.folder.about().get("data")
        if not self.data.draws(split) or not isinstance(known, dict):
            return
        if known.get("fingerprint") != self.data.fingerprint("train", times=False):
            purpose = "testing" if split == "test" else "validation"
            raise InputError(
                f"{self.settings.data.name!r} has changed since {self.path} was trained: other images would be "
                f"drawn for {purpose}, which it may have learned from; bring it back (split.csv lists it), or give it "
                f"a {split} folder."
            )

    def depends_on(self, dataset: str) -> dict[str, Any]:
        """Return what the network's results on a dataset (:meth:`images`) depend on, for JSON."""
        fingerprint = self.data.fingerprint(dataset)
        if dataset not in ("test", "validation"):
            fingerprint = f"{self.data.size} {fingerprint}"  # resized to the run's input size
        return {"version": __version__, "checkpoint": self.digest, "dataset": dataset, "data": self.data_settings,
                "fingerprint": fingerprint}  # fmt: skip


def check_views(header: Header, tta: Augmentations, name: str) -> None:
    """Refuse ``crops`` of images that are no larger than the crop, or that a Dataset's own transforms prepare."""
    if tta != "crops":
        return
    if header.data.own_transforms:
        raise InputError(
            f"{name} takes images that a Dataset's own transforms prepare, which have no other crops; use flip."
        )
    (height, width), (rows, columns) = header.size, header.input_size
    if rows > height or columns > width or (rows, columns) == (height, width):
        raise InputError(
            f"{name} sees {rows}×{columns} of images of {height}×{width} pixels (data.crop_size, data.image_size), "
            "which have no other crops; use flip."
        )


def average_views(answer: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> Tensor:
    """Return a network's output in float32, averaged over views (B, C, h, w) of the images."""
    return torch.stack([answer(view).float() for view in views]).mean(0)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a network computes in a precision of :data:`mixmo.config.hardware.PRECISIONS`."""
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "32-true")
