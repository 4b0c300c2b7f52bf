"""Predictions of trained runs, kept beside them so that judging a second time costs nothing."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mixmo.batches import Augmentation
from mixmo.data import evaluation_loader, load_test_images, load_validation_images
from mixmo.errors import InputError, MissingError, one_of
from mixmo.evaluation import Samples, per_sample, predict_logits
from mixmo.files import write_bytes
from mixmo.hardware import PRECISIONS, training_device
from mixmo.metrics.checks import check_probabilities
from mixmo.metrics.chunks import mean_logits
from mixmo.network import MixMo
from mixmo.plans import make_plan
from mixmo.runs import Run, load_checkpoint
from mixmo.settings import DataSettings


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


def predict(run: Run, dataset: str = "test", checkpoint: str = "last", precision: str = "32-true") -> Predictions:
    """Return a run's predictions, from the run's folder if they were made before by the same checkpoint.

    Args:
        run: The run.
        dataset: ``test``, ``validation`` (as split off for training), or the name of another dataset, whose test images
            are brought to the size of the run's.
        checkpoint: ``last`` or ``best``.
        precision: ``32-true`` or ``bf16-mixed``.

    Raises:
        MissingError: if the run, the checkpoint or the dataset is missing.
        InputError: if the checkpoint is damaged or of another network, or there is no validation set.
    """
    one_of(precision, PRECISIONS, "precision")
    about = {"checkpoint": digest(run.checkpoint_file(checkpoint)), "dataset": dataset, "data": run.config()["data"]}
    slug = re.sub(r"[^\w.-]+", "-", dataset)
    file = run.path / "predictions" / f"{slug}-{checkpoint}-{precision}.safetensors"
    if (known := _read(file, about)) is not None:
        return known
    found = _computed(run, dataset, checkpoint, precision)
    note = json.dumps({"about": about, "classes": found.classes, "epochs": found.epochs})
    content = safetensors.torch.save({"logits": found.logits, "targets": found.targets}, {"note": note})
    file.parent.mkdir(exist_ok=True)
    write_bytes(file, content)
    return found


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


def load_network(run: Run, checkpoint: str = "last") -> Network:
    """Return a run's network on the device that suits it.

    Raises:
        MissingError: if the run or the checkpoint is missing.
        InputError: if the checkpoint is damaged or of another network.
    """
    net, epochs = load_checkpoint(run, checkpoint)
    settings, trainer, *_ = make_plan(run.config())
    device = training_device(trainer["accelerator"])
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Network(net, settings.data, Augmentation(settings.data), device, settings.seed, epochs)


def _computed(run: Run, dataset: str, checkpoint: str, precision: str) -> Predictions:
    network = load_network(run, checkpoint)
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


def _read(file: Path, about: dict[str, object]) -> Predictions | None:
    """Return kept predictions if they are of the same making."""
    try:
        with safetensors.safe_open(file, "pt") as content:
            note = json.loads((content.metadata() or {}).get("note", "{}"))
            if note.get("about") != about:
                return None
            return Predictions(
                content.get_tensor("logits"), content.get_tensor("targets"), note["classes"], note["epochs"]
            )
    except (OSError, safetensors.SafetensorError, json.JSONDecodeError):
        return None  # none there, or damaged: they are made anew


def read_predictions(file: str | Path) -> Predictions:
    """Return predictions that another program saved with ``numpy.savez``.

    Args:
        file: An ``.npz`` with ``targets`` (N,), and ``logits`` or ``probabilities``, (N, K) or (N, M, K); ``classes``
            (K,) names are optional. The logit
            average of probabilities is their geometric mean, normalised.

    Raises:
        MissingError: if there is no such file.
        InputError: if it is damaged or something is missing.

    Example:
        >>> read_predictions("nowhere.npz")
        Traceback (most recent call last):
        mixmo.errors.MissingError: there are no predictions at nowhere.npz.
    """
    if not Path(file).is_file():
        raise MissingError(f"there are no predictions at {file}.")
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:  # as NumPy raises
        raise InputError(f"{file} cannot be read as an .npz file: {error}") from error
    if "targets" not in arrays or len({"logits", "probabilities"} & arrays.keys()) != 1:
        raise InputError(
            f"{file} holds {', '.join(arrays) or 'nothing'}; it needs targets, and logits or probabilities."
        )
    values, targets = arrays["logits" if "logits" in arrays else "probabilities"], arrays["targets"]
    if values.ndim not in (2, 3) or values.dtype.kind != "f":
        raise InputError(
            f"{file} has predictions of shape {values.shape}, {values.dtype}; they are (N, K) or (N, M, K) floats."
        )
    if targets.dtype.kind not in "iu":
        raise InputError(f"{file} has targets of {targets.dtype}; they are class numbers, integers.")
    members = torch.from_numpy(values if values.ndim == 3 else values[:, None])
    if "probabilities" in arrays:
        members = check_probabilities(members, axes=3).clamp(min=torch.finfo(torch.float64).tiny).log()
    classes = [str(name) for name in arrays.get("classes", range(members.shape[2]))]
    if len(classes) != members.shape[2]:
        raise InputError(f"{file} has {len(classes)} names of classes, but predictions for {members.shape[2]}.")
    return Predictions(members.double(), torch.from_numpy(targets.astype(np.int64)), classes)


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
