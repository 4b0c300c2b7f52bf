"""Inference with a trained run on its datasets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixmo import __version__
from mixmo.config.data_settings import split_settings
from mixmo.config.hardware import training_device
from mixmo.config.settings import Settings, neutral_settings
from mixmo.data.batches import Augmentations, CenterCrop
from mixmo.data.given import GIVEN, DatasetImages, has_float_images, open_given
from mixmo.data.image_sets import ImageSet
from mixmo.data.messages import list_some
from mixmo.data.module import DataModule
from mixmo.data.sources import Source
from mixmo.errors import InputError
from mixmo.header import Header
from mixmo.loading import load_checkpoint
from mixmo.models.copying import copy_module
from mixmo.network import MixMo
from mixmo.runs import RunFolder, get_section

log = logging.getLogger("mixmo")


class TrainedRun:
    """A run to predict with or to evaluate; network, settings and images are opened once, on first use.

    The checkpoint's header determines the network, the settings only the images it was trained and tested on.

    Args:
        folder: The run's folder.
        checkpoint: ``last`` or ``best``.
        download: Whether the backbone and datasets may be downloaded; the run's folder cannot allow it.
        option: The option that allows it, for error messages.
        data: Images passed by a program, instead of those named in the run's settings.
        module: The backbone, if it was a program's own module.

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
        self.suffix = ""  # of files with results on other test images
        self._status = folder.checkpoint_status(checkpoint)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    @cached_property
    def device(self) -> torch.device:
        """The device of the run's ``trainer.accelerator`` on this machine."""
        return training_device(self.folder.accelerator())

    @cached_property
    def settings(self) -> Settings:
        """The run's settings, with the network's from the header and open ones resolved for this machine."""
        return self.folder.settings(self.checkpoint)

    @cached_property
    def data(self) -> DataModule:
        """The run's images."""
        return self.given or self._open_data()

    def _open_data(self, given: Mapping[str, Source] | None = None) -> DataModule:
        settings = replace(self.settings.data, download=self.download)
        return DataModule(settings, self.settings.seed, option=self.option, given=given)

    def reopen(self, checkpoint: str | None = None, download: bool | None = None) -> TrainedRun:
        """Return the run as it is on disk now, with another checkpoint or download permission if given.

        The network stays in memory unless its checkpoint has changed; files of images are listed again.
        """
        asked = (checkpoint or self.checkpoint, self.download if download is None else download)
        if asked != (self.checkpoint, self.download):
            run = TrainedRun(self.folder, *asked, self.option, self.given, self.module)
            run.suffix = self.suffix
            return run
        status = self.folder.checkpoint_status(self.checkpoint)
        properties = {name for name, value in vars(TrainedRun).items() if isinstance(value, cached_property)}
        for name in ("settings", "data") if status == self._status else properties:
            self.__dict__.pop(name, None)
        self._status = status
        return self

    def with_test_images(self, images: Any) -> TrainedRun:
        """Return the run with other test images, passed by a program; their results have files of their own.

        Raises:
            InputError: if they are not images, or their classes or their type differ from those of training.
        """
        classes, data = self.header.classes, self.header.data
        on_error = self.settings.data.on_error
        source = open_given(images, "test", classes, on_error).renumber(classes, "the test set")
        floats = has_float_images(source)
        if floats != data.takes_floats:
            given, trained = ("are", "are not") if floats else ("are not", "are")
            raise InputError(
                f"test images {given} floating point, but those that {self.path} was trained on {trained}; prepare "
                "them in the same way."
            )
        if isinstance(source.images, DatasetImages):
            source.images.prepared = data.own_transforms
        known = {} if self.given is None else self.given.given or {}
        run = copy(self)
        run.given, run.suffix = self._open_data({**known, "test": source}), f"-{source.fingerprint()[:8]}"
        run.__dict__.pop("data", None)  # the run's own images
        return run

    @cached_property
    def header(self) -> Header:
        """The checkpoint's header, which describes the network."""
        return self.folder.header(self.checkpoint)

    def warn_of_changes(self) -> None:
        """Warn of unfinished training, and of settings in ``config.yaml`` that the network was not trained with."""
        if finished := self.folder.describe_interruption():
            log.warning("%s has finished %s; %s.", self.path, finished, self.folder.how_to_resume)
        if differences := self.folder.differences(self.checkpoint):
            log.warning("%s has changed since training: %s; the checkpoint's settings are used.",
                        self.folder.config_file, "; ".join(differences))  # fmt: skip

    def warn_of_views(self, tta: Augmentations) -> None:
        """Warn if test-time augmentation uses views that training did not."""
        if tta == "flip" and not (self.settings.data.flip or self.settings.data.own_transforms):
            log.warning(
                "%s was trained without mirrored images (data.flip is false): tta flip may make it worse.", self.path
            )

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the checkpoint file, in hexadecimal."""
        return self.folder.digest(self.checkpoint)

    @cached_property
    def network(self) -> MixMo:
        """A network of the checkpoint that may be trained and changed: results of the run are still the checkpoint's.

        On the device, in evaluation mode, with averaged weights (EMA) if it has them.
        """
        with torch.inference_mode(False):
            return copy_module(self.net)

    @cached_property
    def net(self) -> MixMo:
        """The network that is evaluated, like :attr:`network`; not to be changed, since its results are cached.

        Raises:
            MissingError: if the checkpoint is missing.
            InputError: if it is damaged or of another network.
        """
        with torch.inference_mode(False):  # it is copied for callers, who may train it
            net = load_checkpoint(self.folder, self.checkpoint, self.download, self.module)
            return net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    @cached_property
    def crop(self) -> CenterCrop:
        """The preprocessing of the network's images."""
        return CenterCrop(self.header.data)

    def prepare(self, images: Tensor) -> Tensor:
        """Prepare images (B, H, W, C) uint8 of the run's size for the network: (B, C, h, w) on its device."""
        return self.crop.center(images.to(self.device))

    @property
    def data_settings(self) -> dict[str, Any]:
        """The settings of the ``data`` section that predictions depend on."""
        neutral = neutral_settings()
        return {key: value for key, value in asdict(self.settings.data).items() if f"data.{key}" not in neutral}

    def images(self, dataset: str) -> tuple[ImageSet, list[str]]:
        """Return the images of a dataset and its class names; each dataset is opened and decoded once.

        Args:
            dataset: ``test``, ``validation`` (as split off for training), or the name of another dataset, whose test
                images are resized to the run's input size.

        Raises:
            MissingError: if the dataset is missing.
            InputError: if it is damaged, there is no validation set, or its classes or the size of its images are not
                those of training.
        """
        if dataset not in ("test", "validation"):
            if self.settings.data.own_transforms:
                raise InputError(
                    f"{dataset!r} cannot be prepared like the images of {self.path}, which a Dataset's own transforms "
                    "prepared."
                )
            return self.data.other(dataset)
        self._check_drawn(dataset)
        classes, trained = self.data.source(dataset).classes, self.header.classes
        if classes != trained:
            odd = list_some(sorted({*classes} ^ {*trained}))
            raise InputError(
                f"the {dataset} images of {self.settings.data.name!r} have other classes than {self.path} was trained "
                f"on ({f'not in both: {odd}' if odd else 'in another order'}); restore them, or train again."
            )
        if self.data.size != self.header.size:
            (height, width), (rows, columns) = self.data.size, self.header.size
            raise InputError(
                f"the {dataset} images have {height}×{width} pixels, but {self.path} was trained on {rows}×{columns}; "
                "scale them to that size."
            )
        images = self.data.test if dataset == "test" else self.data.validation
        assert images is not None
        return images, classes

    def _check_drawn(self, split: str) -> None:
        """Refuse images drawn otherwise than in training: the network may have been trained on them."""
        about = self.folder.about()
        if not self.data.is_drawn(split) or not isinstance(known := about.get("data"), dict):
            return
        purpose = "testing" if split == "test" else "validation"
        consequence = f"other images would be drawn for {purpose}, which may have been training images"
        before, now = split_settings(get_section(about, "settings")), split_settings(asdict(self.settings))
        for key in before.keys() & now.keys():
            if before[key] != now[key]:
                raise InputError(
                    f"{self.folder.config_file} sets data.{key} to {now[key]}, but it was {before[key]} in training: "
                    f"{consequence}; change it back."
                )
        if known.get("fingerprint") != self.data.fingerprint("train", times=False):
            raise InputError(
                f"{self.settings.data.name!r} has changed since {self.path} was trained: {consequence}; restore it "
                f"(split.csv lists its images), or give it a {split} folder."
            )

    def depends_on(self, dataset: str) -> dict[str, Any]:
        """Return what the network's results on a dataset (:meth:`images`) depend on, for JSON.

        The images have no ``fingerprint`` if they were passed from Python and are not passed again.
        """
        about = {"version": __version__, "checkpoint": self.digest, "dataset": dataset, "data": self.data_settings}
        if self.given is None and self.settings.data.name == GIVEN and dataset in ("test", "validation"):
            return about
        fingerprint = self.data.fingerprint(dataset)
        if dataset not in ("test", "validation"):
            fingerprint = f"{self.data.size} {fingerprint}"  # resized to the run's input size
        return about | {"fingerprint": fingerprint}


def check_views(header: Header, tta: Augmentations, name: str) -> None:
    """Refuse ``crops`` if images are no larger than the crop, or prepared by a Dataset's own transforms."""
    if tta != "crops":
        return
    if header.data.own_transforms:
        raise InputError(
            f"the images of {name} are prepared by a Dataset's own transforms and have no other crops; use flip."
        )
    (height, width), (rows, columns) = header.size, header.input_size
    if rows > height or columns > width or (rows, columns) == (height, width):
        raise InputError(
            f"{name} sees {rows}×{columns} of images of {height}×{width} pixels (data.crop_size, data.image_size), "
            "which have no other crops; use flip."
        )


def average_views(forward: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> Tensor:
    """Average a network's output over views (B, C, h, w) of the images, in float32."""
    return torch.stack([forward(view).float() for view in views]).mean(0)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context for a precision of :data:`mixmo.config.hardware.PRECISIONS`."""
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "32-true")
