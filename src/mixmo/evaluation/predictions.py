"""Predictions of runs, cached in their folders, or read from a file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixmo.cache import cache_tensors, read_tensors
from mixmo.data.batches import Augmentations
from mixmo.data.image_sets import build_evaluation_loader, check_shared_memory
from mixmo.data.labels import check_names
from mixmo.data.messages import warn_once
from mixmo.errors import InputError, MissingError, explain_errors
from mixmo.evaluation.inference import TrainedRun, autocast, average_views
from mixmo.metrics.checks import as_tensor, check_probabilities, check_targets_for
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.multi_label import check_label_sets
from mixmo.metrics.samples import Samples, per_sample
from mixmo.metrics.temperature import weight_members


@dataclass(frozen=True)
class Predictions:
    """Predictions of M members for N images.

    Attributes:
        logits: (N, M, K) float32.
        targets: (N,) class numbers (of the other dataset's classes for OOD images), or labels (N, K), 0 or 1.
        classes: The K class names.
        epochs: Epochs the members were trained for; 0 if unknown.
        images: Fingerprint of the images, without their labels; empty if unknown.
    """

    logits: Tensor
    targets: Tensor
    classes: list[str]
    epochs: int = 0
    images: str = ""

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.targets.dim() == 2

    def same_images(self, other: Predictions) -> bool:
        """Return whether both are predictions of the same images, as far as known."""
        same = not (self.images and other.images) or self.images == other.images
        return same and torch.equal(self.targets, other.targets)

    def average(self) -> Samples:
        """Return the per-sample metrics of the averaged logits."""
        return per_sample(mean_logits(self.logits), self.targets)


def predict(
    run: TrainedRun,
    dataset: str = "test",
    precision: str = "32-true",
    refresh: bool = False,
    tta: Augmentations = "none",
) -> Predictions:
    """Return a run's predictions, cached in its folder.

    The cache is valid for the checkpoint, the run's ``data`` settings, the dataset's files and the version of mixmo;
    for images that a program passed and does not pass again, it is valid for the checkpoint. A cache file that is
    damaged, or cannot be written, only causes a warning.

    Args:
        run: The run.
        dataset: ``test``, ``validation`` (as split off for training), or the name of another dataset, whose test images
            are resized to the run's input size.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        refresh: Predict again even if predictions are cached.
        tta: Test-time augmentation, over whose views logits are averaged: ``none``, ``flip`` or ``crops``.
    """
    file, about = _file(run, dataset, precision, tta), run.depends_on(dataset)
    cached = None if refresh else _read(file)
    if cached is not None and about.items() <= cached[1].items():
        return cached[0]
    computed = _compute(run, dataset, precision, tta)
    note = {"about": about, "classes": computed.classes, "epochs": computed.epochs, "images": computed.images}
    cache_tensors(file, {"logits": computed.logits, "targets": computed.targets}, note)
    return computed


def load_cached_predictions(
    run: TrainedRun, dataset: str, precision: str = "32-true", tta: Augmentations = "none"
) -> Predictions | None:
    """Return the checkpoint's predictions that :func:`predict` cached, if any, without opening the dataset."""
    cached = _read(_file(run, dataset, precision, tta))
    return None if cached is None or cached[1]["checkpoint"] != run.digest else cached[0]


def _read(file: Path) -> tuple[Predictions, dict[str, Any]] | None:
    """Return cached predictions and what they depend on; ``None`` if the file is missing or damaged."""
    if (cached := read_tensors(file)) is None:
        return None
    tensors, note = cached
    columns = tensors["logits"], tensors["targets"], note["classes"], note["epochs"], note["images"]
    return Predictions(*columns), note["about"]


def _file(run: TrainedRun, dataset: str, precision: str, tta: Augmentations) -> Path:
    views, suffix = "" if tta == "none" else f"-{tta}", run.suffix if dataset == "test" else ""
    return run.path / "predictions" / f"{_slug(dataset)}{suffix}-{run.checkpoint}-{precision}{views}.safetensors"


@torch.no_grad()  # inference tensors could not be used to fit weights
def _compute(run: TrainedRun, dataset: str, precision: str, tta: Augmentations) -> Predictions:
    net, (images, classes) = run.net, run.images(dataset)
    check_shared_memory(images, run.settings.data, run.settings.data.evaluation_size)
    logits, targets = [], []
    with autocast(run.device, precision):
        for batch in build_evaluation_loader(images, run.settings.data, run.device):
            pixels, labels, chosen = (tensor.to(run.device) for tensor in batch)
            logits.append(average_views(net.members, run.crop.views(pixels, tta, chosen)).cpu())
            targets.append(labels[chosen].cpu())
    epochs, fingerprint = run.folder.finished_epochs(run.checkpoint), run.data.fingerprint(dataset, times=False)
    return Predictions(torch.cat(logits), torch.cat(targets), classes, epochs, fingerprint)


def _slug(dataset: str) -> str:
    """Return a short, unique file name for a dataset."""
    if dataset in ("test", "validation"):
        return dataset
    readable = re.sub(r"[^\w.-]+", "-", dataset, flags=re.ASCII)[-60:]
    return f"{readable}-{hashlib.sha256(os.fsencode(dataset)).hexdigest()[:8]}"


def read_predictions(file: str | Path) -> Predictions:
    """Read predictions that another program saved with ``numpy.savez``.

    The file has ``targets`` (N,) and ``logits`` or ``probabilities``, (N, K) or (N, M, K); names ``classes`` (K,) are
    optional. The logit average of probabilities is their normalised geometric mean; 0 counts as the smallest positive
    number, with a warning if it is that of a true class. ``targets`` (N, K), 0 or 1, are several labels per image;
    probabilities are then of each label.

    Raises:
        MissingError: if there is no such file.
        InputError: if it is damaged, or an array is missing or invalid.
    """
    if not Path(file).is_file():
        raise MissingError(f"there is no file {file}.")
    wanted = ("targets", "logits", "probabilities", "classes")
    with explain_errors(f"{file} cannot be read as an .npz file"), np.load(file, allow_pickle=False) as archive:
        names = archive.files
        arrays = {name: np.asarray(archive[name]) for name in names if name in wanted}
    if "targets" not in arrays or len({"logits", "probabilities"} & arrays.keys()) != 1:
        raise InputError(
            f"{file} holds {', '.join(names) or 'nothing'}; it needs targets, and logits or probabilities."
        )
    values, targets = arrays["logits" if "logits" in arrays else "probabilities"], arrays["targets"]
    if values.ndim not in (2, 3) or values.dtype.kind != "f" or not values.size:
        raise InputError(
            f"{file} has predictions of shape {values.shape}, {values.dtype}; they must be floats (N, K) or (N, M, K)."
        )
    native = values.astype(f"f{min(values.dtype.itemsize, 8)}", copy=False)  # torch has no long doubles
    try:
        members = as_tensor(native if values.ndim == 3 else native[:, None], "predictions")
        multi_label = targets.ndim == 2
        if "probabilities" in arrays and multi_label:
            if not bool(((members >= 0) & (members <= 1)).all()):
                raise InputError("probabilities are not all between 0 and 1.")
            members = members.double().logit(torch.finfo(torch.float64).eps)
        elif "probabilities" in arrays:
            members = check_probabilities(members, axes=3).clamp(min=torch.finfo(torch.float64).tiny).log()
        labels = (check_label_sets if multi_label else check_targets_for)(members, as_tensor(targets, "targets"))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    if "probabilities" in arrays:
        _warn_of_zeros(file, torch.from_numpy(native).reshape(members.shape), labels)
    return Predictions(members.double(), labels, _class_names(file, arrays.get("classes"), members.shape[2]))


def _warn_of_zeros(file: str | Path, probabilities: Tensor, labels: Tensor) -> None:
    """Warn of images of which a member gives a label a probability of exactly 0."""
    if labels.dim() == 2:
        zero = probabilities == 1 - labels[:, None]
    else:
        zero = probabilities.gather(2, labels[:, None, None].expand(-1, probabilities.shape[1], 1)) == 0
    if count := int(zero.flatten(1).any(1).sum()):
        warn_once(
            f"{file} has a probability of exactly 0 for the label of {count} images, whose NLL would be infinite; the "
            "smallest positive number is used, and determines the NLL. Save logits, or probabilities of more digits."
        )


def _class_names(file: str | Path, names: np.ndarray | None, count: int) -> list[str]:
    if names is None:
        return [str(number) for number in range(count)]
    if names.shape != (count,) or names.dtype.kind not in "USiu":
        raise InputError(
            f"{file} has classes of shape {names.shape}, {names.dtype}; they must be {count} names, one for each class "
            "of the predictions."
        )
    with explain_errors(f"{file} has class names that cannot be read", ValueError):  # bytes that are not UTF-8
        found = [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    check_names(found, str(file))
    return found


def join_predictions(parts: Sequence[Predictions], names: Sequence[str], weights: Sequence[float] = ()) -> Predictions:
    """Join the members of several runs into one ensemble; ``weights`` are factors of each run's logits.

    Raises:
        InputError: if images or classes differ.
    """
    first = parts[0]
    for part, name in zip(parts[1:], names[1:], strict=True):
        if part.classes != first.classes or not part.same_images(first):
            raise InputError(
                f"{names[0]} and {name} cannot be ensembled: they were tested on different images or classes."
            )
    logits = weight_members([part.logits for part in parts], weights)
    return replace(first, logits=logits, epochs=max(part.epochs for part in parts))
