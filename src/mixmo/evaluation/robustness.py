"""What corruption does to the figures: every kind and severity, made on the fly or read from CIFAR-10-C's files."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixmo import __version__
from mixmo.config.plan import make_plan
from mixmo.config.settings import DataSettings
from mixmo.corruptions import KINDS, LARGE, SEVERITIES, corrupt, table_for
from mixmo.data.loading import fingerprint_of_test, load_test_images
from mixmo.data.sets import evaluation_loader
from mixmo.errors import InputError, MissingError
from mixmo.evaluation.arrays import open_npy
from mixmo.evaluation.evaluate import basic_figures
from mixmo.evaluation.kept import keep_json, read_json
from mixmo.evaluation.predictions import Network, check_classes, digest, load_network
from mixmo.metrics.chunks import mean_logits
from mixmo.names import printable
from mixmo.runs import Run
from mixmo.seeding import generator_for

BLOCK = 250
"""Images corrupted together. Draws are a function of (kind, severity, block), the same for every network."""

Figures = dict[str, dict[int, dict[str, float]]]
"""By kind and severity: ``accuracy``, ``nll`` and ``ece`` of the logit average, and ``member_0/accuracy`` …"""


@dataclass(frozen=True)
class Corrupted:
    """What corruption does to a network or an ensemble.

    Attributes:
        kinds: Its figures.
        source: Where the images come from, in words.
    """

    kinds: Figures
    source: str


class MadeCorruptions:
    """A dataset's test images, corrupted by :func:`mixmo.corruptions.corrupt`.

    Args:
        settings: The run's ``data`` section.
        device: Where to corrupt them.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if it is damaged.
    """

    def __init__(self, settings: DataSettings, device: torch.device) -> None:
        images, self.classes = load_test_images(settings)
        self.loader = evaluation_loader(images, replace(settings, eval_batch_size=BLOCK), device)
        self.device, self.kinds = device, tuple(KINDS)
        height, width = images.__getitems__([0]).images.shape[1:3]
        table = "ImageNet-C" if table_for(height, width) is LARGE else "CIFAR-C"
        self.about = f"made on the fly with the severities of {table} (frost is drawn, not pasted)"

    def batches(self, kind: str, severity: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, H, W, C) uint8 and class numbers (B,)."""
        which = list(KINDS).index(kind) * len(SEVERITIES) + severity - 1
        for block, (images, labels, chosen) in enumerate(self.loader):
            images, labels, chosen = images.to(self.device), labels.to(self.device), chosen.to(self.device)
            generator = generator_for(which, block, "corruption")
            yield corrupt(images[chosen], kind, severity, generator), labels[chosen]


class PublishedCorruptions:
    """The files of CIFAR-10-C or CIFAR-100-C: ``labels.npy`` and, for each kind, the five severities one after another.

    Args:
        folder: Where the ``.npy`` files are.
        targets: (N,) class numbers of the test set, whose counts each severity has to have.
        settings: The run's ``data`` section.

    Raises:
        MissingError: if there is no such folder, or nothing in it.
        InputError: if a file does not fit.
    """

    def __init__(self, folder: Path, targets: Tensor, settings: DataSettings) -> None:
        files = {file.stem: file for file in sorted(folder.glob("*.npy"))}
        labels = files.pop("labels", None)
        if labels is None or not files:
            raise MissingError(f"{folder} holds no corruptions: there are to be labels.npy and KIND.npy files.")
        self.labels, self.arrays = open_npy(labels), {kind: open_npy(file) for kind, file in files.items()}
        if self.labels.ndim != 1 or self.labels.dtype.kind not in "iu" or len(self.labels) % len(SEVERITIES):
            raise InputError(
                f"{labels} holds {self.labels.dtype} of shape {self.labels.shape}, not the class numbers of five "
                "severities."
            )
        side = settings.image_size
        for kind, array in self.arrays.items():
            height, width = (side, side) if side else (*array.shape[1:3], 0, 0)[:2]
            wanted = (len(self.labels), height, width, settings.channels)
            if array.shape != wanted or array.dtype != np.uint8:
                raise InputError(
                    f"{files[kind]} holds {array.dtype} of shape {array.shape}, but five severities of uint8 images "
                    f"that fit labels.npy and the network are of shape {wanted}."
                )
        wanted_labels = np.sort(targets.numpy())
        for part in np.split(self.labels, len(SEVERITIES)):
            if not np.array_equal(np.sort(part), wanted_labels):
                raise InputError(f"{labels} does not have the test set's classes, as many of each at every severity.")
        self.kinds = tuple(self.arrays)
        self.about = f"read from {folder}"

    def batches(self, kind: str, severity: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, H, W, C) uint8 and class numbers (B,)."""
        count = len(self.labels) // len(SEVERITIES)
        last = severity * count
        for start in range(last - count, last, BLOCK):
            part = slice(start, min(start + BLOCK, last))
            labels = torch.from_numpy(self.labels[part].astype(np.int64))
            yield torch.from_numpy(self.arrays[kind][part].copy()), labels


Corruptions = MadeCorruptions | PublishedCorruptions


def corruption_figures(
    runs: Sequence[Run],
    targets: Tensor,
    checkpoint: str = "last",
    precision: str = "32-true",
    folder: str | Path | None = None,
    refresh: bool = False,
    download: bool = False,
) -> Corrupted:
    """Return the figures of runs, as one ensemble, on corrupted test images.

    They are kept in the first run's folder, kind after kind, so that a second call costs nothing and one that was
    stopped goes on, as long as nothing they depend on changes (:func:`mixmo.evaluation.predictions.predict`).

    Args:
        runs: The runs.
        targets: (N,) class numbers of the test set.
        checkpoint: ``last`` or ``best``.
        precision: ``32-true`` or ``bf16-mixed``.
        folder: CIFAR-10-C's or CIFAR-100-C's; ``None`` makes the corruptions from the run's test images.
        refresh: Predict anew, whatever is kept.
        download: Whether what the networks are built from may be downloaded.

    Raises:
        MissingError: if a run, its checkpoint, the dataset or the folder is missing.
        InputError: if a checkpoint or a file is damaged, or the runs look at different images.
    """
    about = _about(runs, checkpoint, precision, folder)
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    file = runs[0].path / "predictions" / f"corruptions-{key}.json"
    figures, source, whole = ({}, "", False) if refresh else _kept(file, about)
    if whole:
        return Corrupted(figures, source)
    networks = [load_network(run, checkpoint, download) for run in runs]
    corruptions = _source(runs, networks, targets, folder)
    keeping = True
    for kind in corruptions.kinds:
        if kind in figures:
            continue
        figures[kind] = {severity: _judged(networks, corruptions, kind, severity, precision) for severity in SEVERITIES}
        shown = " ".join(f"{100 * each['accuracy']:6.2f}" for each in figures[kind].values())
        print(f"{printable(kind):18} top-1 % at severities 1 to 5: {shown}", flush=True)
        whole = len(figures) == len(corruptions.kinds)
        note = {"about": about, "source": corruptions.about, "whole": whole, "kinds": figures}
        keeping = keeping and keep_json(file, note)
    return Corrupted(figures, corruptions.about)


def _about(runs: Sequence[Run], checkpoint: str, precision: str, folder: str | Path | None) -> dict[str, object]:
    """Return what the figures depend on."""
    return {
        "version": __version__,
        "checkpoints": [digest(run.checkpoint_file(checkpoint)) for run in runs],
        "data": [run.config()["data"] for run in runs],
        "fingerprint": fingerprint_of_test(make_plan(runs[0].config()).settings.data),
        "precision": precision,
        "files": None if folder is None else _listed(Path(folder)),
    }


def mean_figures(figures: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict[str, float]:
    """Return the means over all kinds and severities, under ``corruption/``.

    Example:
        >>> mean_figures({"fog": {1: {"accuracy": 0.5}, 2: {"accuracy": 0.25}}})
        {'corruption/accuracy': 0.375}
    """
    cells = [cell for kind in figures.values() for cell in kind.values()]
    return {f"corruption/{key}": statistics.fmean(cell[key] for cell in cells) for key in cells[0]}


def _listed(folder: Path) -> list[str]:
    """Return what tells whether the files are those of an earlier call."""
    if not folder.is_dir():
        raise MissingError(f"there is no folder of corruptions {folder}.")
    return [
        f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in sorted(folder.glob("*.npy"))
    ]


def _kept(file: Path, about: dict[str, object]) -> tuple[Figures, str, bool]:
    """Return what an earlier call found, and whether it came to its end; nothing if it was about something else."""
    content = read_json(file)
    if content is None or content["about"] != about:
        return {}, "", False
    figures = {
        kind: {int(severity): cell for severity, cell in cells.items()} for kind, cells in content["kinds"].items()
    }
    return figures, content["source"], content["whole"]


def _source(
    runs: Sequence[Run], networks: Sequence[Network], targets: Tensor, folder: str | Path | None
) -> Corruptions:
    first = networks[0].settings
    for run, network in zip(runs, networks, strict=True):
        for key in ("image_size", "channels"):
            if (own := getattr(network.settings, key)) != (wanted := getattr(first, key)):
                raise InputError(f"{run.path} has data.{key} {own}, but {runs[0].path} {wanted}; they are no ensemble.")
    if folder is None:
        made = MadeCorruptions(first, networks[0].device)
        for run, network in zip(runs, networks, strict=True):
            check_classes(run, network, made.classes)
        return made
    return PublishedCorruptions(Path(folder), targets, first)


def _said(network: Network, images: Tensor, precision: str) -> Tensor:
    """Return logits (B, M, K) on the CPU, seen in batches of the size that suits the network's device."""
    seen = []
    with torch.autocast(network.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        for part in images.to(network.device).split(network.settings.evaluation_size):
            everything = torch.arange(len(part), device=network.device)
            seen.append(network.net(network.augment.center(part, everything)).float().cpu())
    return torch.cat(seen)


@torch.inference_mode()
def _judged(
    networks: Sequence[Network], corruptions: Corruptions, kind: str, severity: int, precision: str
) -> dict[str, float]:
    logits, targets = [], []
    for images, labels in corruptions.batches(kind, severity):
        logits.append(torch.cat([_said(network, images, precision) for network in networks], 1))
        targets.append(labels.cpu())
    said, truth = torch.cat(logits), torch.cat(targets)
    figures = basic_figures(mean_logits(said), truth)
    if said.shape[1] > 1:
        for index in range(said.shape[1]):
            own = basic_figures(said[:, index], truth)
            figures |= {f"member_{index}/{key}": value for key, value in own.items()}
    return figures
