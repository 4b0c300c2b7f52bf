"""``mixmo.Predictor``: predictions for new images."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mixmo.config.hardware import PRECISIONS
from mixmo.data.batches import Augmentations
from mixmo.data.decoding import COLOURS
from mixmo.data.given import is_float
from mixmo.data.image_sets import to_input
from mixmo.data.messages import list_some, warn_once
from mixmo.deploy.image_predictions import ImagePredictions, LabelPredictions, interpret_labels, interpret_logits
from mixmo.deploy.images import AnyImage, Decoded, InputFormat, decode_batches
from mixmo.deploy.models import Model, find_calibration, input_format, open_model, open_run
from mixmo.deploy.spec import Spec
from mixmo.errors import InputError, one_of, refuse_labels
from mixmo.escaping import printable
from mixmo.evaluation.calibration import ClassCalibration, LabelCalibration, Weights, check_weights
from mixmo.evaluation.inference import TrainedRun, check_views
from mixmo.header import Preparation
from mixmo.metrics.conformal import SETS, Sets
from mixmo.metrics.temperature import weight_members
from mixmo.runs import CHECKPOINTS

logger = logging.getLogger("mixmo")

Network = str | Path | TrainedRun
"""A run, its folder, or an exported folder or file."""


class BatchOutputs(NamedTuple):
    """Logits (B, M, K) and features (B, D) of a batch, its images' numbers, and why others cannot be read."""

    numbers: list[int]
    logits: Tensor
    features: Tensor | None
    errors: dict[int, str]


class Predictor:
    """Predicts with a run, an ensemble of several, or an exported network; needs no dataset.

    Args:
        models: A run, its folder, an exported folder or file, or a list of some; ``A+B`` is two of them.
        checkpoint: Of runs: ``last``, or ``best`` on the validation set; ``None`` is a Run's own, else ``last``.
        coverage: Share of images whose true class is in their conformal set; ``None`` is 0.95.
        max_error_rate: Largest error rate among predictions that are not deferred; ``None`` is 0.05. Multi-label
            predictions have neither sets nor deferral.
        precision: Of runs: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        download: Whether a backbone defined on the Hub (``hf-hub:…``) may be downloaded; ``None`` is as a Run allows.
        sets: Kind of conformal sets: ``marginal``, ``classwise``, ``aps`` or ``raps``
            (:func:`mixmo.metrics.conformal.score_classes`).
        tta: Test-time augmentation: ``flip`` averages logits over the image and its mirror image, ``crops`` over a
            centre crop and four corner crops. Runs are calibrated with the same augmentation of their validation
            images; exports are then not calibrated.
        weights: ``fitted`` fits weights of an ensemble's runs on their common validation images (Asymmetric Duos,
            arXiv 2505.18636); ``equal`` averages all members.
        features: Whether to return the pooled features before the heads, at the cost of a second pass.

    Attributes:
        classes: The K class names.
        multi_label: Whether an image may have several of them.
        calibration: That of the network or ensemble; if ``None``, predictions have no confidence, sets or deferral.
        uncalibrated: Why ``calibration`` is ``None``, else empty.

    Raises:
        MissingError: if there is no such network.
        InputError: if it is damaged or not a path, classes of an ensemble differ, weights cannot be fitted, features of
            several networks are requested, or a share is not between 0 and 1.

    Example:
        >>> import mixmo
        >>> run = mixmo.fit(recipe="digits-cut", epochs=1, limit_train_batches=2, progress=False)
        >>> predictor = Predictor(run.path, coverage=0.9)  # or Predictor("photos.onnx"), Predictor("runs/a+runs/b")
        >>> found = predictor(np.zeros((2, 16, 16), np.uint8)[..., None])  # or predictor(["a.jpg", "b.png"])
        >>> len(found), found.probabilities.shape, found.sets.shape
        (2, torch.Size([2, 10]), torch.Size([2, 10]))
    """

    def __init__(
        self,
        models: Network | Sequence[Network],
        checkpoint: str | None = None,
        coverage: float | None = None,
        max_error_rate: float | None = None,
        precision: str = "32-true",
        download: bool | None = None,
        sets: Sets = "marginal",
        tta: Augmentations = "none",
        weights: Weights = "equal",
        features: bool = False,
    ) -> None:
        one_of(precision, PRECISIONS, "precision")
        one_of(checkpoint or "last", CHECKPOINTS, "checkpoint")
        one_of(sets, SETS, "sets")
        one_of(tta, get_args(Augmentations), "tta")
        one_of(weights, get_args(Weights), "weights")
        for name, share in (("coverage", coverage), ("max_error_rate", max_error_rate)):
            if share is not None and (not isinstance(share, Real) or not 0 < share < 1):
                raise InputError(f"{name} is {share!r}; it is a share between 0 and 1.")
        self.coverage = 0.95 if coverage is None else coverage
        self.max_error_rate = 0.05 if max_error_rate is None else max_error_rate
        self.sets, self.tta, self.features = sets, tta, features
        networks = _list_networks(models)
        names = [each.path if isinstance(each, TrainedRun) else each for each in networks]
        if not names or len({Path(path).resolve() for path in names}) < len(names):
            raise InputError(f"{models!r} names no network, or one twice; an ensemble needs different networks.")
        check_weights(weights, names)
        self.models: list[Model] = [
            open_run(each.reopen(checkpoint, download), precision)
            if isinstance(each, TrainedRun)
            else open_model(each, checkpoint or "last", precision, bool(download))
            for each in networks
        ]
        self.classes = self.models[0].spec.classes
        self.multi_label = self.models[0].spec.multi_label
        if self.multi_label:
            asked = {"coverage": coverage, "max_error_rate": max_error_rate, "sets": sets != "marginal",
                     "weights": weights != "equal", "features": features}  # fmt: skip
            refuse_labels(printable(str(names[0])), asked)
        labels = [printable(str(name)) for name in names]
        self._check_inputs(labels)
        self.calibration, self.uncalibrated = find_calibration(self.models, labels, tta, weights)
        if weights == "fitted" and self.uncalibrated:
            raise InputError(f"weights cannot be fitted: {self.uncalibrated}")
        self._warn_of_rare_classes()

    def _check_inputs(self, names: Sequence[str]) -> None:
        """Refuse networks that cannot be ensembled; warn of TTA views not used in training."""
        for model in self.models[1:]:
            if model.spec.classes != self.classes or model.spec.multi_label != self.multi_label:
                first, other = self.classes, model.spec.classes
                raise InputError(
                    f"the networks of an ensemble have different classes, {list_some(first)} and {list_some(other)}; "
                    "combine networks trained on the same classes."
                )
        data = self.models[0].spec.data
        if any(model.spec.data.own_transforms != data.own_transforms for model in self.models):
            raise InputError(
                "the networks cannot be ensembled: one takes images, another tensors from a Dataset's own transforms."
            )
        for key in ("channels", "mean", "std", "window") if data.own_transforms else ():
            for model in self.models:  # whose images are prepared once for all
                if (value := getattr(model.spec.data, key)) != (one := getattr(data, key)):
                    raise InputError(f"the networks cannot be ensembled: {key} of one is {one}, of another {value}.")
        if self.features and len(self.models) > 1:
            raise InputError(f"features are of one network, not of {len(self.models)}; predict with each separately.")
        for model, name in zip(self.models, names, strict=True):
            check_views(model.spec, self.tta, name)
            if model.run is not None:
                with suppress(InputError):  # its configuration may be missing
                    model.run.warn_of_views(self.tta)

    def _warn_of_rare_classes(self) -> None:
        """Warn of classes that are in every class-wise set."""
        if not isinstance(self.calibration, ClassCalibration) or self.sets != "classwise":
            return
        unbounded = self.calibration.set_thresholds(self.coverage, len(self.classes), self.sets).isinf()
        if rare := ", ".join(self.classes[number] for number in unbounded.nonzero()[:, 0].tolist()):
            why = f"too few validation images for class-wise sets of {self.coverage:g}"
            logger.warning("%s", printable(f"Every set holds {rare}: {why}."))

    def __call__(
        self, images: AnyImage | Sequence[AnyImage], batch_size: int = 64, workers: int = 0
    ) -> ImagePredictions | LabelPredictions:
        """Predict images.

        Args:
            images: One or several: paths, the contents of image files, Pillow images, arrays (H, W), (H, W, C) or
                (C, H, W), tensors (H, W) or (C, H, W); arrays and tensors are uint8, uint16, or floats from 0 to 1;
                for a network with a window, any numbers in its units. A batch is an array (N, H, W, C) or a tensor
                (N, C, H, W). A network trained on a Dataset with its own transforms takes what these return:
                floating-point tensors (C, H, W), or images and tensors of integers.
            batch_size: Images in a batch.
            workers: Decoding processes; 0 decodes in this one.

        Raises:
            InputError: if there are none, or one cannot be read; the message names it.
        """
        images = _as_list(images, self.models[0].spec.data)
        if not images:
            raise InputError("there are no images to predict.")
        batches = []
        for batch in self.stream(images, batch_size, workers):
            for number, why in batch.errors.items():
                raise InputError(f"image {_name(images[number], number)} cannot be read: {why}.")
            batches.append(batch)
        features = [batch.features for batch in batches if batch.features is not None]
        names = [_name(image, number) for number, image in enumerate(images)]
        logits = torch.cat([batch.logits for batch in batches])
        return self.interpret(logits, names, torch.cat(features) if features else None)

    def interpret(
        self, logits: Tensor, names: Sequence[str], features: Tensor | None = None
    ) -> ImagePredictions | LabelPredictions:
        """Turn logits (N, M, K) and features of :meth:`stream` into predictions for images with these ``names``."""
        found = self.calibration
        if self.multi_label:
            return interpret_labels(logits, names, self.classes, found if isinstance(found, LabelCalibration) else None)
        calibration = found if isinstance(found, ClassCalibration) else None
        options = (calibration, self.coverage, self.max_error_rate, self.sets)
        return interpret_logits(logits, names, self.classes, *options, features)

    def stream(self, images: Sequence[AnyImage], batch_size: int = 64, workers: int = 0) -> Iterator[BatchOutputs]:
        """Yield outputs batch by batch, with the reasons why images cannot be read.

        ``batch_size`` and ``workers`` are those of :meth:`__call__`.

        Raises:
            InputError: if the network's outputs are not finite, or ``batch_size`` or ``workers`` is no such number.
        """
        for name, number, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if not isinstance(number, Integral) or number < least:
                raise InputError(f"{name} is {number!r}; it is a whole number of at least {least}.")
        formats = list(dict.fromkeys(input_format(model.spec) for model in self.models))
        if self.models[0].spec.data.own_transforms:
            batches = _stack_prepared(images, formats, int(batch_size), self.models[0].spec)
        else:
            batches = decode_batches(images, formats, int(batch_size), int(workers))
        for batch in batches:
            logits, features = torch.zeros(0, 1, len(self.classes)), None
            if batch.numbers:
                logits, features = self._forward(batch.pixels)
            if len(bad := (~logits.isfinite()).flatten(1).any(1).nonzero()):
                number = batch.numbers[int(bad[0])]
                raise InputError(
                    f"the network answers image {_name(images[number], number)} with numbers that are not finite; its "
                    "training has diverged, or it started from such weights: train it again at a lower learning rate."
                )
            yield BatchOutputs(batch.numbers, logits, features, batch.errors)

    def _forward(self, images: dict[InputFormat, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the logits (B, M, K) of all networks' members, and features (B, D) if requested."""
        inputs = [images[input_format(model.spec)] for model in self.models]
        logits = [model.logits(pixels, self.tta) for model, pixels in zip(self.models, inputs, strict=True)]
        weights = None if self.calibration is None else self.calibration.weights
        features = self.models[0].features(inputs[0], self.tta) if self.features else None
        return weight_members(logits, weights), features


def _list_networks(models: Network | Sequence[Network]) -> list[Network]:
    """Return paths and runs, splitting ``A+B``; refuse anything else, such as a network itself."""
    networks: list[Any] = list(models) if isinstance(models, list | tuple) else [models]
    for each in networks:
        if not isinstance(each, str | os.PathLike | TrainedRun):
            raise InputError(
                f"a {type(each).__name__} is not a path; Predictor takes the folder of a run or an exported network, "
                "which holds its classes and preprocessing. Call a network itself on tensors: net(images)."
            )
    if not isinstance(models, str | os.PathLike) or Path(models).exists():
        return networks
    return [*str(models).split("+")]


def _stack_prepared(
    images: Sequence[AnyImage], formats: Sequence[InputFormat], batch_size: int, spec: Spec
) -> Iterator[Decoded]:
    """Yield batches of tensors from a Dataset's own transforms; warn if their size differs from training."""
    for start in range(0, len(images), batch_size):
        numbers = [*range(start, min(start + batch_size, len(images)))]
        tensors = [_to_tensor(images[number], number, spec) for number in numbers]
        shape = tuple(tensors[0].shape)
        if len(shape) != 3 or shape[0] != spec.data.channels:
            raise InputError(f"image {start} has shape {shape}; the network takes ({spec.data.channels}, H, W).")
        for number, tensor in zip(numbers, tensors, strict=True):
            if tensor.shape != shape:
                raise InputError(
                    f"image {number} has shape {tuple(tensor.shape)}, but image {start} has {shape}; prepare all to "
                    "one size."
                )
        if shape != (expected := (spec.data.channels, *spec.size)):
            warn_once(f"Images have shape {shape}, but those of training had {expected}: prepare them the same way.")
        yield Decoded(numbers, dict.fromkeys(formats, torch.stack(tensors)), {})


def _to_tensor(image: AnyImage, number: int, spec: Spec) -> Tensor:
    """Convert an image that a Dataset's own transforms prepared; refuse anything else.

    As in training, images of integers are normalised, and tensors of floats are not.
    """
    data = spec.data
    if isinstance(image, Image.Image | np.ndarray | Tensor) and is_float(image) == data.takes_floats:
        return to_input(image, data, lambda: f"image {_name(image, number)}")
    what = "floating-point tensors (C, H, W)" if data.takes_floats else "images or tensors of integers"
    raise InputError(
        f"image {_name(image, number)} is a {type(image).__name__}, but the network was trained on a Dataset with its "
        f"own transforms; give the {what} that these return."
    )


def _as_list(images: AnyImage | Sequence[AnyImage], data: Preparation) -> Sequence[AnyImage]:
    """Return a list of images; a network of grey images takes several as (N, H, W), as in training."""
    if isinstance(images, np.ndarray | Tensor):
        are_grey = data.channels == 1 and not data.own_transforms and images.ndim == 3
        are_grey = are_grey and images.shape[0] != 1 and images.shape[2] not in COLOURS
        if are_grey and images.shape[0] in COLOURS:
            raise InputError(
                f"an array of shape {tuple(images.shape)} may be one image in colour or {images.shape[0]} grey ones; "
                "give a list of images, or (N, H, W, 1)."
            )
        return list(images) if are_grey or images.ndim == 4 else [images]
    return images if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]


def _name(image: AnyImage, number: int) -> str:
    return printable(str(image)) if isinstance(image, str | Path) else str(number)
