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

from mixmo.cache import keep_tensors, read_tensors
from mixmo.data.batches import Augmentations
from mixmo.data.image_sets import build_evaluation_loader, check_shared_memory
from mixmo.errors import InputError, MissingError, reason
from mixmo.evaluation.inference import TrainedRun, autocast, average_views
from mixmo.metrics.checks import as_tensor, check_logits, check_probabilities
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.multi_label import check_label_sets
from mixmo.metrics.samples import Samples, per_sample


@dataclass(frozen=True)
class Predictions:
    """What M members predict for N images.

    Attributes:
        logits: (N, M, K) float32.
        targets: (N,) class numbers; those of another dataset's own classes where images are out of distribution. Of
            several labels (N, K), 0 or 1.
        classes: The K class names.
        epochs: Epochs the members were trained for; 0 if that is not known.
        images: What tells the images from others, regardless of their labels; empty if that is not known.
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

    def are_of(self, other: Predictions) -> bool:
        """Return whether both are of the same images, as far as that is known."""
        same = not (self.images and other.images) or self.images == other.images
        return same and torch.equal(self.targets, other.targets)

    def average(self) -> Samples:
        """Return what is known of each prediction of the logit average."""
        return per_sample(mean_logits(self.logits), self.targets)


def predict(
    run: TrainedRun,
    dataset: str = "test",
    precision: str = "32-true",
    refresh: bool = False,
    tta: Augmentations = "none",
) -> Predictions:
    """Return a run's predictions; those kept in its folder if nothing they depend on has changed since.

    They depend on the checkpoint, the run's ``data`` settings, the files of the dataset and the version of mixmo. A
    kept file that is damaged, or cannot be written, costs a warning.

    Args:
        run: The run.
        dataset: ``test``, ``validation`` (as split off for training), or the name of another dataset, whose test images
            are brought to the input size of the run's.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        refresh: Predict again even if predictions are cached.
        tta: Test-time augmentation, over whose views logits are averaged: ``none``, ``flip`` or ``crops``.
    """
    file, about = _file(run, dataset, precision, tta), run.depends_on(dataset)
    kept = None if refresh else _read(file)
    if kept is not None and kept[1] == about:
        return kept[0]
    found = _compute(run, dataset, precision, tta)
    note = {"about": about, "classes": found.classes, "epochs": found.epochs, "images": found.images}
    keep_tensors(file, {"logits": found.logits, "targets": found.targets}, note)
    return found


def load_kept_predictions(
    run: TrainedRun, dataset: str, precision: str = "32-true", tta: Augmentations = "none"
) -> Predictions | None:
    """Return what :func:`predict` has kept of the checkpoint; ``None`` if there is none. The dataset may be gone."""
    kept = _read(_file(run, dataset, precision, tta))
    return None if kept is None or kept[1]["checkpoint"] != run.digest else kept[0]


def _read(file: Path) -> tuple[Predictions, dict[str, Any]] | None:
    """Return kept predictions and what they depend on; ``None`` if there are none, or they are damaged."""
    if (kept := read_tensors(file)) is None:
        return None
    tensors, note = kept
    columns = tensors["logits"], tensors["targets"], note["classes"], note["epochs"], note["images"]
    return Predictions(*columns), note["about"]


def _file(run: TrainedRun, dataset: str, precision: str, tta: Augmentations) -> Path:
    views = "" if tta == "none" else f"-{tta}"
    return run.path / "predictions" / f"{_slug(dataset)}-{run.checkpoint}-{precision}{views}.safetensors"


@torch.inference_mode()
def _compute(run: TrainedRun, dataset: str, precision: str, tta: Augmentations) -> Predictions:
    net, (images, classes) = run.network, run.images(dataset)
    check_shared_memory(images, run.settings.data, run.settings.data.evaluation_size)
    logits, targets = [], []
    with autocast(run.device, precision):
        for batch in build_evaluation_loader(images, run.settings.data, run.device):
            pixels, labels, chosen = (each.to(run.device) for each in batch)
            logits.append(average_views(net.members, run.crop.views(pixels, tta, chosen)).cpu())
            targets.append(labels[chosen].cpu())
    epochs, fingerprint = run.folder.finished_epochs(run.checkpoint), run.data.fingerprint(dataset, times=False)
    return Predictions(torch.cat(logits), torch.cat(targets), classes, epochs, fingerprint)


def _slug(dataset: str) -> str:
    """Return a file's name for a dataset: short, and another for each."""
    if dataset in ("test", "validation"):
        return dataset
    readable = re.sub(r"[^\w.-]+", "-", dataset, flags=re.ASCII)[-60:]
    return f"{readable}-{hashlib.sha256(os.fsencode(dataset)).hexdigest()[:8]}"


def read_predictions(file: str | Path) -> Predictions:
    """Return predictions that another program saved with ``numpy.savez``.

    The file has ``targets`` (N,), and ``logits`` or ``probabilities``, (N, K) or (N, M, K); ``classes`` (K,) names are
    optional. The logit average of probabilities is their normalised geometric mean. With ``targets`` (N, K), 0 or 1,
    images have several labels, and each probability is of one.

    Raises:
        MissingError: if there is no such file.
        InputError: if it is damaged, or something is missing, of another shape or no prediction.
    """
    if not Path(file).is_file():
        raise MissingError(f"there is no file {file}.")
    wanted = ("targets", "logits", "probabilities", "classes")
    try:
        with np.load(file, allow_pickle=False) as archive:
            names = archive.files
            arrays = {name: np.asarray(archive[name]) for name in names if name in wanted}
    except Exception as error:  # zipfile and NumPy may raise anything for damaged bytes
        raise InputError(f"{file} cannot be read as an .npz file: {reason(error)}.") from error
    if "targets" not in arrays or len({"logits", "probabilities"} & arrays.keys()) != 1:
        raise InputError(
            f"{file} holds {', '.join(names) or 'nothing'}; it needs targets, and logits or probabilities."
        )
    values, targets = arrays["logits" if "logits" in arrays else "probabilities"], arrays["targets"]
    if values.ndim not in (2, 3) or values.dtype.kind != "f" or not values.size:
        raise InputError(
            f"{file} has predictions of shape {values.shape}, {values.dtype}; they are (N, K) or (N, M, K) floats."
        )
    native = values.astype(f"f{min(values.dtype.itemsize, 8)}", copy=False)  # torch has no long doubles
    try:
        members = as_tensor(native if values.ndim == 3 else native[:, None], "predictions")
        several = targets.ndim == 2
        if "probabilities" in arrays and several:
            if not bool(((members >= 0) & (members <= 1)).all()):
                raise InputError("probabilities are not all between 0 and 1.")
            members = members.double().logit(torch.finfo(torch.float64).eps)
        elif "probabilities" in arrays:
            members = check_probabilities(members, axes=3).clamp(min=torch.finfo(torch.float64).tiny).log()
        numbers = (check_label_sets if several else check_logits)(members, as_tensor(targets, "targets"))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return Predictions(members.double(), numbers, _class_names(file, arrays.get("classes"), members.shape[2]))


def _class_names(file: str | Path, names: np.ndarray | None, count: int) -> list[str]:
    if names is None:
        return [str(number) for number in range(count)]
    if names.shape != (count,) or names.dtype.kind not in "USiu":
        raise InputError(
            f"{file} has classes of shape {names.shape}, {names.dtype}; they are {count} names, as many as a "
            "prediction has numbers."
        )
    try:
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    except ValueError as error:  # bytes that are not text
        raise InputError(f"{file} has names of classes that cannot be read: {reason(error)}.") from error


def join_predictions(parts: Sequence[Predictions], names: Sequence[str], weights: Sequence[float] = ()) -> Predictions:
    """Return the predictions of all members of several runs, as one ensemble; weights are factors of each run's logits.

    Raises:
        InputError: if images or classes differ, also where they happen to have the same labels.
    """
    first = parts[0]
    for part, name in zip(parts[1:], names[1:], strict=True):
        if part.classes != first.classes or not part.are_of(first):
            raise InputError(
                f"{names[0]} and {name} cannot be ensembled: they were tested on different images or classes."
            )
    logits = [part.logits for part in parts]
    if weights:
        logits = [weight * each for weight, each in zip(weights, logits, strict=True)]
    return replace(first, logits=torch.cat(logits, 1), epochs=max(part.epochs for part in parts))
