"""Predictions of trained runs, kept beside them so that judging a second time costs nothing."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixmo import __version__
from mixmo.config.hardware import PRECISIONS, training_device
from mixmo.config.plan import make_plan
from mixmo.config.settings import DataSettings
from mixmo.data.batches import Augmentation
from mixmo.data.loading import fingerprint_of_test, fingerprint_of_validation, load_test_images, load_validation_images
from mixmo.data.sets import evaluation_loader
from mixmo.errors import InputError, one_of, reason
from mixmo.evaluation.arrays import read_npz
from mixmo.evaluation.evaluate import Samples, per_sample, predict_logits
from mixmo.evaluation.kept import keep_tensors, read_tensors
from mixmo.metrics.checks import check_logits, check_probabilities
from mixmo.metrics.chunks import mean_logits
from mixmo.network import MixMo
from mixmo.runs import Run, load_checkpoint


@dataclass(frozen=True)
class Predictions:
    """What M members said of N images.

    Attributes:
        logits: (N, M, K) float32.
        targets: (N,) class numbers; those of another dataset's own classes where images are out of distribution.
        classes: The K class names.
        epochs: Epochs the members were trained for; 0 if that is not known.
    """

    logits: Tensor
    targets: Tensor
    classes: list[str]
    epochs: int = 0

    def average(self) -> Samples:
        """Return what is known of each answer of the logit average."""
        return per_sample(mean_logits(self.logits), self.targets)


def predict(
    run: Run,
    dataset: str = "test",
    checkpoint: str = "last",
    precision: str = "32-true",
    refresh: bool = False,
    download: bool = False,
) -> Predictions:
    """Return a run's predictions; those that are kept in its folder if nothing they depend on has changed since.

    They depend on the checkpoint, the run's ``data`` settings, the files of the dataset and the version of mixmo. What
    is damaged is made anew, with a warning; so it is if nothing can be written into the folder.

    Args:
        run: The run.
        dataset: ``test``, ``validation`` (as split off for training), or the name of another dataset, whose test images
            are brought to the size of the run's.
        checkpoint: ``last`` or ``best``.
        precision: ``32-true`` or ``bf16-mixed``.
        refresh: Predict anew, whatever is kept.
        download: Whether what the network is built from may be downloaded.

    Raises:
        MissingError: if the run, the checkpoint or the dataset is missing.
        InputError: if the checkpoint is damaged or of another network, or there is no validation set.
    """
    one_of(precision, PRECISIONS, "precision")
    about = {
        "version": __version__,
        "checkpoint": digest(run.checkpoint_file(checkpoint)),
        "dataset": dataset,
        "data": run.config()["data"],
        "fingerprint": _fingerprint(run, dataset),
    }
    file = run.path / "predictions" / f"{_slug(dataset)}-{checkpoint}-{precision}.safetensors"
    if not refresh and (known := read_tensors(file)) is not None and known[1]["about"] == about:
        tensors, note = known
        return Predictions(tensors["logits"], tensors["targets"], note["classes"], note["epochs"])
    found = _computed(run, dataset, checkpoint, precision, download)
    note = {"about": about, "classes": found.classes, "epochs": found.epochs}
    keep_tensors(file, {"logits": found.logits, "targets": found.targets}, note)
    return found


def _fingerprint(run: Run, dataset: str) -> str:
    settings = make_plan(run.config()).settings
    if dataset == "validation":
        return fingerprint_of_validation(settings.data, settings.seed)
    own = fingerprint_of_test(settings.data)
    return own if dataset == "test" else f"{own} {fingerprint_of_test(settings.data, dataset)}"  # brought to its size


def _slug(dataset: str) -> str:
    """Return a file's name for a dataset: short, and another for each."""
    if dataset in ("test", "validation"):
        return dataset
    readable = re.sub(r"[^\w.-]+", "-", dataset, flags=re.ASCII)[-60:]
    return f"{readable}-{hashlib.sha256(os.fsencode(dataset)).hexdigest()[:8]}"


@dataclass(frozen=True)
class Network:
    """A trained network and what it needs to look at images.

    Attributes:
        net: In evaluation mode, on the device.
        settings: The run's ``data`` section.
        augment: Its middle crop and normalisation.
        device: Where to run it.
        seed: The run's seed.
        epochs: Epochs it was trained for.
    """

    net: MixMo
    settings: DataSettings
    augment: Augmentation
    device: torch.device
    seed: int
    epochs: int


def load_network(run: Run, checkpoint: str = "last", download: bool = False) -> Network:
    """Return a run's network on the device that suits it.

    Args:
        run: The run.
        checkpoint: ``last`` or ``best``.
        download: Whether what the network is built from may be downloaded.

    Raises:
        MissingError: if the run or the checkpoint is missing.
        InputError: if the checkpoint is damaged or of another network.
    """
    net, epochs = load_checkpoint(run, checkpoint, download)
    settings, trainer, *_ = make_plan(run.config())
    device = training_device(trainer["accelerator"])
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Network(net, settings.data, Augmentation(settings.data), device, settings.seed, epochs)


def _computed(run: Run, dataset: str, checkpoint: str, precision: str, download: bool) -> Predictions:
    network = load_network(run, checkpoint, download)
    if dataset == "validation":
        images, classes = load_validation_images(network.settings, network.seed)
    else:
        images, classes = load_test_images(network.settings, None if dataset == "test" else dataset)
    if dataset in ("test", "validation"):
        check_classes(run, network, classes)
    batches = evaluation_loader(images, network.settings, network.device)
    with torch.autocast(network.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        logits, targets = predict_logits(network.net, batches, network.augment, network.device)
    return Predictions(logits, targets, classes, network.epochs)


def check_classes(run: Run, network: Network, classes: Sequence[str]) -> None:
    """Refuse a dataset that has come to have another number of classes than the run was trained on.

    Raises:
        InputError: naming both.
    """
    if len(classes) != network.net.num_classes:
        raise InputError(
            f"{network.settings.name!r} has {len(classes)} classes, but {run.path} was trained on "
            f"{network.net.num_classes}."
        )


def digest(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read_predictions(file: str | Path) -> Predictions:
    """Return predictions that another program saved with ``numpy.savez``.

    Args:
        file: An ``.npz`` with ``targets`` (N,), and ``logits`` or ``probabilities``, (N, K) or (N, M, K); ``classes``
            (K,) names are optional. The logit
            average of probabilities is their geometric mean, normalised.

    Raises:
        MissingError: if there is no such file.
        InputError: if it is damaged, or something is missing, of another shape or no prediction.

    Example:
        >>> read_predictions("nowhere.npz")
        Traceback (most recent call last):
        mixmo.errors.MissingError: there is no file nowhere.npz.
    """
    arrays, names = read_npz(file, ("targets", "logits", "probabilities", "classes"))
    if "targets" not in arrays or len({"logits", "probabilities"} & arrays.keys()) != 1:
        raise InputError(
            f"{file} holds {', '.join(names) or 'nothing'}; it needs targets, and logits or probabilities."
        )
    values, targets = arrays["logits" if "logits" in arrays else "probabilities"], arrays["targets"]
    if values.ndim not in (2, 3) or values.dtype.kind != "f" or not values.size:
        raise InputError(
            f"{file} has predictions of shape {values.shape}, {values.dtype}; they are (N, K) or (N, M, K) floats."
        )
    if targets.dtype.kind not in "iu":
        raise InputError(f"{file} has targets of {targets.dtype}; they are class numbers, integers.")
    try:
        members, numbers = _members(values, "probabilities" in arrays), _class_numbers(targets)
        check_logits(members, numbers)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return Predictions(members, numbers, _class_names(file, arrays.get("classes"), members.shape[2]))


def _members(values: np.ndarray, probabilities: bool) -> Tensor:
    """Return logits (N, M, K) in float64."""
    native = values.astype(f"f{min(values.dtype.itemsize, 8)}", copy=False)  # neither swapped bytes nor long doubles
    members = torch.from_numpy(np.ascontiguousarray(native if values.ndim == 3 else native[:, None]))
    if probabilities:
        return check_probabilities(members, axes=3).clamp(min=torch.finfo(torch.float64).tiny).log()
    return members.double()


def _class_numbers(targets: np.ndarray) -> Tensor:
    """Return int64 class numbers; what is larger than that stays too large for any class."""
    if targets.dtype.kind == "u":
        targets = np.minimum(targets, np.uint64(np.iinfo(np.int64).max))
    return torch.from_numpy(targets.astype(np.int64))


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
    except ValueError as error:  # bytes that are no text
        raise InputError(f"{file} has names of classes that cannot be read: {reason(error)}.") from error


def joined(parts: Sequence[Predictions], names: Sequence[str]) -> Predictions:
    """Return the predictions of all members of several runs, as one ensemble.

    Args:
        parts: Predictions of the same images.
        names: The runs', for the error.

    Raises:
        InputError: if images or classes differ.

    Example:
        >>> one = Predictions(torch.zeros(4, 2, 3), torch.zeros(4, dtype=torch.long), ["a", "b", "c"])
        >>> joined([one, one], ["x", "y"]).logits.shape
        torch.Size([4, 4, 3])
    """
    first = parts[0]
    for part, name in zip(parts[1:], names[1:], strict=True):
        if part.classes != first.classes or not torch.equal(part.targets, first.targets):
            raise InputError(f"{names[0]} and {name} were tested on different images or classes; they are no ensemble.")
    epochs = max(part.epochs for part in parts)
    return Predictions(torch.cat([part.logits for part in parts], 1), first.targets, first.classes, epochs)
