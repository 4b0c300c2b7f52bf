"""``mixmo.Predictor``: predictions for new images."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from mixmo.config.hardware import PRECISIONS
from mixmo.data.batches import Augmentations
from mixmo.data.messages import list_some, warn_once
from mixmo.deploy.image_predictions import ImagePredictions, LabelPredictions, interpret_labels, interpret_logits
from mixmo.deploy.images import AnyImage, Decoded, Form, decode_image
from mixmo.deploy.models import Model, find_calibration, get_form, open_model, open_run
from mixmo.deploy.spec import Spec
from mixmo.errors import InputError, one_of, refuse_labels
from mixmo.escaping import printable
from mixmo.evaluation.calibration import Calibration, LabelCalibration, Weights
from mixmo.evaluation.inference import TrainedRun, check_views
from mixmo.metrics.conformal import SETS, Sets

logger = logging.getLogger("mixmo")


class Answers(NamedTuple):
    """Outputs (B, M, K) and (B, D) for a batch of images, by their numbers, and why others cannot be read."""

    numbers: list[int]
    logits: Tensor
    features: Tensor | None
    errors: dict[int, str]


class Predictor:
    """Predicts with a run, several as one ensemble, or an exported network; the dataset may be gone.

    Args:
        models: A run, its folder, an exported folder or file, or several; ``A+B`` is several, too.
        checkpoint: ``last``, or ``best`` on the validation set, of a run.
        coverage: Share of the images whose true class the conformal sets hold; ``None`` is 0.95.
        max_error_rate: Largest share of wrong predictions among those not deferred; ``None`` is 0.05. Images with
            several labels have neither sets nor deferral.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``, of a run.
        download: Whether a backbone that is only described elsewhere (``hf-hub:…``) may be downloaded.
        sets: How the conformal sets are made: ``marginal``, ``classwise``, ``aps`` or ``raps``
            (:func:`mixmo.metrics.conformal.score_classes`).
        tta: Test-time augmentation: ``flip`` averages logits over the image and its mirror image, ``crops`` over its
            middle and four corners. A run is calibrated with the same views of its validation images; an
            export then has no calibration.
        weights: ``fitted`` fits weights of an ensemble's runs on their common validation images (Asymmetric Duos,
            arXiv 2505.18636); ``equal`` averages all members.
        features: Whether predictions have the pooled features before the heads, at the cost of a second pass.

    Attributes:
        classes: The K class names.
        multi_label: Whether an image may have several of them.
        calibration: That of the network, or of several together; ``None`` if there is none: confidence, set and
            defer are then empty.
        uncalibrated: Why there is none; empty if there is one.

    Raises:
        MissingError: if there is no such network.
        InputError: if it is damaged or not a path, the networks' classes differ, weights cannot be fitted, features of
            several are asked for, or a share is not between 0 and 1.

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
        models: str | Path | TrainedRun | Sequence[str | Path],
        checkpoint: str = "last",
        coverage: float | None = None,
        max_error_rate: float | None = None,
        precision: str = "32-true",
        download: bool = False,
        sets: Sets = "marginal",
        tta: Augmentations = "none",
        weights: Weights = "equal",
        features: bool = False,
    ) -> None:
        one_of(precision, PRECISIONS, "precision")
        one_of(sets, SETS, "sets")
        one_of(tta, get_args(Augmentations), "tta")
        one_of(weights, get_args(Weights), "weights")
        for name, share in (("coverage", coverage), ("max_error_rate", max_error_rate)):
            if share is not None and not 0 < share < 1:
                raise InputError(f"{name} is {share}; it is a share between 0 and 1.")
        self.coverage = 0.95 if coverage is None else coverage
        self.max_error_rate = 0.05 if max_error_rate is None else max_error_rate
        self.sets, self.tta, self.features = sets, tta, features
        if isinstance(models, TrainedRun):
            names: list[str | Path] = [models.path]
            self.models: list[Model] = [open_run(models, precision)]
        else:
            names = _paths(models)
            if not names or len({Path(path).resolve() for path in names}) < len(names):
                raise InputError(f"{models!r} names no network, or one twice; an ensemble needs different networks.")
            self.models = [open_model(path, checkpoint, precision, download) for path in names]
        self.classes = self.models[0].spec.classes
        self.multi_label = self.models[0].spec.multi_label
        for model in self.models[1:]:
            if model.spec.classes != self.classes or model.spec.multi_label != self.multi_label:
                first, other = (each.spec.classes for each in (self.models[0], model))
                raise InputError(
                    f"the networks of an ensemble have different classes, {list_some(first)} and {list_some(other)}; "
                    "join those of the same data."
                )
        if self.multi_label:
            asked = {"coverage": coverage, "max_error_rate": max_error_rate, "sets": sets != "marginal",
                     "weights": weights != "equal", "features": features}  # fmt: skip
            refuse_labels(printable(str(names[0])), asked)
        shown = [printable(str(name)) for name in names]
        self._check_inputs(shown)
        self.calibration, self.uncalibrated = find_calibration(self.models, shown, tta, weights)
        if weights == "fitted" and self.uncalibrated and len(names) > 1:
            raise InputError(f"weights cannot be fitted: {self.uncalibrated}")
        self._warn_of_rare_classes()

    def _check_inputs(self, names: Sequence[str]) -> None:
        """Refuse networks that cannot answer together; warn of views they do not know."""
        if len({model.spec.data.own_transforms for model in self.models}) > 1:
            raise InputError(
                "one network takes images, another what a Dataset's transforms gave: they are no ensemble."
            )
        if self.features and len(self.models) > 1:
            raise InputError(f"features are of one network, not of {len(self.models)}; predict with each separately.")
        for model, name in zip(self.models, names, strict=True):
            check_views(model.spec, self.tta, name)
            if model.run is not None:
                with suppress(InputError):  # its configuration may be gone
                    model.run.warn_of_views(self.tta)

    def _warn_of_rare_classes(self) -> None:
        """Name the classes that class-wise sets never leave out."""
        if not isinstance(self.calibration, Calibration) or self.sets != "classwise":
            return
        unbounded = self.calibration.set_thresholds(self.coverage, len(self.classes), self.sets).isinf()
        if rare := ", ".join(self.classes[number] for number in unbounded.nonzero()[:, 0].tolist()):
            why = f"too few validation images for class-wise sets of {self.coverage:g}"
            logger.warning("%s", printable(f"Every set holds {rare}: {why}."))

    def __call__(
        self, images: AnyImage | Sequence[AnyImage], batch_size: int = 64, workers: int = 0
    ) -> ImagePredictions | LabelPredictions:
        """Return the predictions for images.

        Args:
            images: One or several: paths, the contents of image files, Pillow images, arrays (H, W), (H, W, C) or
                (C, H, W), tensors (H, W) or (C, H, W); arrays and tensors are uint8, uint16, or floats from 0 to 1;
                for a network with a window, any numbers in its units. A batch is an array (N, H, W, C) or a tensor
                (N, C, H, W). For a network trained on images that a Dataset prepared: floating point (C, H, W), as
                the Dataset gives them.
            batch_size: Images in a batch.
            workers: Processes that decode; 0 decodes in this one.

        Raises:
            InputError: if there are none, or one cannot be read; it is named.
        """
        several = _as_list(images)
        if not several:
            raise InputError("there are no images to predict.")
        logits, features = [], []
        for _, found, own, errors in self.stream(several, batch_size, workers):
            for number, why in errors.items():
                raise InputError(f"image {_name(several[number], number)} cannot be read: {why}.")
            logits.append(found)
            features += [] if own is None else [own]
        names = [_name(image, number) for number, image in enumerate(several)]
        return self.interpret(torch.cat(logits), names, torch.cat(features) if features else None)

    def interpret(
        self, logits: Tensor, names: Sequence[str], features: Tensor | None = None
    ) -> ImagePredictions | LabelPredictions:
        """Return predictions for images of these names from the logits (N, M, K) and features of :meth:`stream`."""
        known = self.calibration
        if self.multi_label:
            return interpret_labels(logits, names, self.classes, known if isinstance(known, LabelCalibration) else None)
        own = known if isinstance(known, Calibration) else None
        promises = (own, self.coverage, self.max_error_rate, self.sets)
        return interpret_logits(logits, names, self.classes, *promises, features)

    def stream(self, images: Sequence[AnyImage], batch_size: int = 64, workers: int = 0) -> Iterator[Answers]:
        """Yield the networks' outputs batch by batch, and why other images cannot be read.

        ``images``, ``batch_size`` and ``workers`` are those of a call.

        Raises:
            InputError: if the network's outputs are not finite.
        """
        forms = list(dict.fromkeys(get_form(model.spec) for model in self.models))
        if self.models[0].spec.data.own_transforms:
            batches = _stack_prepared(images, forms, batch_size, self.models[0].spec)
        else:
            batches = decode_image(images, forms, batch_size, workers)
        for batch in batches:
            logits, features = torch.zeros(0, 1, len(self.classes)), None
            if batch.numbers:
                logits, features = self._answer(batch.pixels)
            if len(bad := (~logits.isfinite()).flatten(1).any(1).nonzero()):
                number = batch.numbers[int(bad[0])]
                raise InputError(
                    f"the network answers image {_name(images[number], number)} with numbers that are not finite; its "
                    "training has diverged, or it started from such weights: train it again at a lower learning rate."
                )
            yield Answers(batch.numbers, logits, features, batch.errors)

    def _answer(self, images: dict[Form, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the logits (B, M, K) of all members of all networks, and features (B, D) if they are asked for."""
        shown = [images[get_form(model.spec)] for model in self.models]
        logits = [model.logits(each, self.tta) for model, each in zip(self.models, shown, strict=True)]
        if self.calibration is not None and self.calibration.weights is not None:
            logits = [weight * each for weight, each in zip(self.calibration.weights, logits, strict=True)]
        features = self.models[0].features(shown[0], self.tta) if self.features else None
        return torch.cat(logits, 1), features


def _paths(models: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """Return the paths of the networks, splitting ``A+B``; refuse anything else, such as a network itself."""
    paths: list[Any] = list(models) if isinstance(models, list | tuple) else [models]
    for each in paths:
        if not isinstance(each, str | os.PathLike):
            raise InputError(
                f"a {type(each).__name__} is not a path; Predictor takes the folder of a run or an exported network, "
                "which has its classes and how images are prepared. Call a network itself on tensors: net(images)."
            )
    if isinstance(models, list | tuple) or Path(paths[0]).exists():
        return paths
    return [*str(paths[0]).split("+")]


def _stack_prepared(
    images: Sequence[AnyImage], forms: Sequence[Form], batch_size: int, spec: Spec
) -> Iterator[Decoded]:
    """Yield batches of what a Dataset has prepared; warn if it is of another size than in training."""
    for start in range(0, len(images), batch_size):
        numbers = [*range(start, min(start + batch_size, len(images)))]
        parts = [_prepared(images[number], number) for number in numbers]
        for number, each in zip(numbers, parts, strict=True):
            if each.shape != parts[0].shape:
                raise InputError(
                    f"image {number} has shape {tuple(each.shape)}, but image {start} has {tuple(parts[0].shape)}; "
                    "prepare all to one size."
                )
            if not bool(each.isfinite().all()):
                raise InputError(f"image {number} has values that are not finite.")
        wanted = (spec.data.channels, *spec.size)
        if (found := tuple(parts[0].shape)) != wanted:
            warn_once(f"Images have shape {found}, but those of training had {wanted}: prepare them the same way.")
        yield Decoded(numbers, dict.fromkeys(forms, torch.stack(parts)), {})


def _prepared(image: AnyImage, number: int) -> Tensor:
    """Return an image as a Dataset has prepared it."""
    if isinstance(image, np.ndarray | Tensor) and (found := torch.as_tensor(image)).is_floating_point():
        return found.float()
    raise InputError(
        f"image {_name(image, number)} is a {type(image).__name__}, but the network was trained on what a Dataset's "
        "own transforms gave; give floating-point tensors (C, H, W)."
    )


def _as_list(images: AnyImage | Sequence[AnyImage]) -> Sequence[AnyImage]:
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    return images if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]


def _name(image: AnyImage, number: int) -> str:
    return printable(str(image)) if isinstance(image, str | Path) else str(number)
