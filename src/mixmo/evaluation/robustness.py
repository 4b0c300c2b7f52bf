"""Robustness to corruptions, generated or read from CIFAR-10-C and CIFAR-100-C files."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixmo import __version__
from mixmo.cache import cache_json, read_json
from mixmo.corruptions import KINDS, LARGE, SEVERITIES, corrupt, table_for
from mixmo.data.batches import Augmentations
from mixmo.data.image_sets import build_evaluation_loader
from mixmo.errors import InputError, MissingError, explain_errors
from mixmo.escaping import printable
from mixmo.evaluation.evaluate import basic_metrics
from mixmo.evaluation.inference import TrainedRun, autocast, average_views
from mixmo.files import check_regular
from mixmo.header import Header
from mixmo.metrics.chunks import mean_logits
from mixmo.metrics.temperature import weight_members
from mixmo.seeding import generator_for

logger = logging.getLogger("mixmo")

BLOCK = 250
"""Images corrupted together. Draws depend only on (kind, severity, block), so are the same for every network."""

REVISION = 2
"""Raised when results change within a version, so that cached ones are not used."""

Kinds = dict[str, dict[int, dict[str, float]]]
"""Metrics by kind and severity."""


@dataclass(frozen=True)
class CorruptionResult:
    """Metrics of a network, or of an ensemble of networks, on corrupted test images.

    Attributes:
        kinds: By kind and severity (1 to 5): ``accuracy``, ``nll`` and ``ece`` of the averaged logits and, with several
            members, ``member_0/accuracy`` ….
        source: Description of where the images come from.
    """

    kinds: Kinds
    source: str

    def means(self, *kinds: str) -> dict[str, float]:
        """Return the means over some or all kinds of corruption and their severities."""
        cells = [cell for kind in kinds or self.kinds for cell in self.kinds[kind].values()]
        return {key: statistics.fmean(cell[key] for cell in cells) for key in cells[0]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CorruptionResult:
        """Return the result from JSON's ``kinds`` and ``source``; null becomes NaN."""
        kinds = {
            str(kind): {
                int(severity): {key: math.nan if value is None else float(value) for key, value in cell.items()}
                for severity, cell in cells.items()
            }
            for kind, cells in content["kinds"].items()
        }
        return cls(kinds, str(content["source"]))


class GeneratedCorruptions:
    """A run's test images, corrupted on its device by :func:`mixmo.corruptions.corrupt`."""

    def __init__(self, run: TrainedRun) -> None:
        images, _ = run.images("test")
        self.loader = build_evaluation_loader(images, replace(run.settings.data, eval_batch_size=BLOCK), run.device)
        self.device, self.kinds = run.device, tuple(KINDS)
        height, width = images.__getitems__([0]).images.shape[1:3]
        table = "ImageNet-C" if table_for(height, width) is LARGE else "CIFAR-C"
        self.source = f"generated with the severities of {table} (frost is drawn, not pasted)"

    def batches(self, kind: str, severity: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, H, W, C) uint8 and class numbers (B,)."""
        index = list(KINDS).index(kind) * len(SEVERITIES) + severity - 1
        for block, (images, labels, chosen) in enumerate(self.loader):
            images, labels, chosen = images.to(self.device), labels.to(self.device), chosen.to(self.device)
            generator = generator_for(index, block, "corruption")
            yield corrupt(images[chosen], kind, severity, generator), labels[chosen]


class PublishedCorruptions:
    """The files of CIFAR-10-C or CIFAR-100-C: ``labels.npy``, and ``KIND.npy`` with all severities in order.

    Each severity must have as many images of each class as the test set, whose class numbers are ``targets`` (N,).
    """

    def __init__(self, folder: Path, targets: Tensor, header: Header) -> None:
        files = {file.stem: file for file in sorted(folder.glob("*.npy"))}
        labels = files.pop("labels", None)
        if labels is None or not files:
            raise MissingError(f"{folder} holds no corruptions: it needs labels.npy and KIND.npy files.")
        self.labels, self.arrays = open_npy(labels), {kind: open_npy(file) for kind, file in files.items()}
        self._check(labels, files, targets, header)
        self.kinds = tuple(self.arrays)
        self.source = f"read from {folder}"

    def batches(self, kind: str, severity: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, H, W, C) uint8 and class numbers (B,)."""
        count = len(self.labels) // len(SEVERITIES)
        end = severity * count
        for start in range(end - count, end, BLOCK):
            part = slice(start, min(start + BLOCK, end))
            labels = torch.from_numpy(self.labels[part].astype(np.int64))
            yield torch.from_numpy(self.arrays[kind][part].copy()), labels

    def _check(self, file: Path, files: Mapping[str, Path], targets: Tensor, header: Header) -> None:
        """Refuse labels with other class counts than the test set, and images that the network does not take."""
        if self.labels.ndim != 1 or self.labels.dtype.kind not in "iu" or len(self.labels) % len(SEVERITIES):
            raise InputError(
                f"{file} holds {self.labels.dtype} of shape {self.labels.shape}; it must hold the class numbers of "
                "five severities."
            )
        for part in np.split(self.labels, len(SEVERITIES)):
            if not np.array_equal(np.sort(part), np.sort(targets.numpy())):
                raise InputError(f"{file} does not have the test set's class counts at every severity.")
        for kind, array in self.arrays.items():
            wanted = (len(self.labels), *header.size, header.data.channels)
            if array.shape != wanted or array.dtype != np.uint8:
                raise InputError(
                    f"{files[kind]} holds {array.dtype} of shape {array.shape}; for labels.npy and the network it must "
                    f"hold uint8 of shape {wanted}."
                )


def open_npy(file: Path) -> np.ndarray:
    """Memory-map the array of an ``.npy`` file."""
    with explain_errors(f"{file} cannot be read as an .npy file"):
        check_regular(file)
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


Corruptions = GeneratedCorruptions | PublishedCorruptions


def evaluate_corruptions(
    runs: Sequence[TrainedRun],
    targets: Tensor,
    folder: str | Path | None = None,
    precision: str = "32-true",
    refresh: bool = False,
    tta: Augmentations = "none",
    weights: Sequence[float] = (),
) -> CorruptionResult:
    """Evaluate runs, as one ensemble, on corrupted test images, whose class numbers are ``targets`` (N,).

    Metrics are cached in the first run's folder (as by :func:`mixmo.evaluation.predictions.predict`), after each kind
    of corruption, so that an interrupted call is resumed. ``folder`` is that of CIFAR-10-C or CIFAR-100-C; ``None``
    generates the corruptions from the run's test images.

    Raises:
        MissingError: if a run, its checkpoint, the dataset or the folder is missing.
        InputError: if a checkpoint or a file is damaged, or the runs take different images.
    """
    about: dict[str, Any] = {
        "version": __version__,
        "revision": REVISION,
        "checkpoints": [run.digest for run in runs],
        "data": [run.data_settings for run in runs],
        "fingerprint": runs[0].data.fingerprint("test"),
        "precision": precision,
        "files": None if folder is None else _list_files(Path(folder)),
    }
    about |= ({} if tta == "none" else {"tta": tta}) | ({"weights": list(weights)} if weights else {})
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    file = runs[0].path / "predictions" / f"corruptions-{key}.json"
    cached = None if refresh else read_json(file)
    if cached is None or cached["about"] != about:
        cached = {"whole": False, "kinds": {}, "source": ""}
    result = CorruptionResult.from_json(cached)
    if cached["whole"]:
        return result
    corruptions, kinds, writable = _open_corruptions(runs, targets, folder), result.kinds, True
    for kind in corruptions.kinds:
        if kind in kinds:
            continue
        forward = partial(_logits, runs, weights, precision=precision, tta=tta)
        kinds[kind] = {severity: _measure(forward, corruptions, kind, severity) for severity in SEVERITIES}
        accuracies = " ".join(f"{100 * metrics['accuracy']:6.2f}" for metrics in kinds[kind].values())
        logger.info("%-18s top-1 %% at severities 1 to 5: %s", printable(kind), accuracies)
        whole = len(kinds) == len(corruptions.kinds)
        note = {"about": about, "source": corruptions.source, "whole": whole, "kinds": kinds}
        writable = writable and cache_json(file, note)
    return CorruptionResult(kinds, corruptions.source)


def _list_files(folder: Path) -> list[str]:
    """Return names, sizes and modification times of the files, for the cache key."""
    if not folder.is_dir():
        raise MissingError(f"there is no folder of corruptions {folder}.")
    return [
        f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in sorted(folder.glob("*.npy"))
    ]


def _open_corruptions(runs: Sequence[TrainedRun], targets: Tensor, folder: str | Path | None) -> Corruptions:
    first = runs[0].settings.data
    for run in runs:
        data = run.settings.data
        if data.own_transforms:
            raise InputError(
                f"the images of {run.path} are prepared by a Dataset's own transforms; corrupt them there, and test it."
            )
        if data.channels not in (1, 3):
            raise InputError(
                f"corruptions are for grey and colour images, but {run.path} takes {data.channels} bands "
                "(data.channels)."
            )
        for key in ("image_size", "channels", *(("window", "interpolation") if folder is None else ())):
            value, wanted = getattr(data, key), getattr(first, key)
            if value != wanted:
                raise InputError(
                    f"{run.path} has data.{key} {value}, but {runs[0].path} {wanted}: they cannot be ensembled."
                )
    if folder is None:
        return GeneratedCorruptions(runs[0])
    return PublishedCorruptions(Path(folder), targets, runs[0].header)


def _logits(
    runs: Sequence[TrainedRun], weights: Sequence[float], images: Tensor, precision: str, tta: Augmentations
) -> Tensor:
    """Return logits (B, M, K) on the CPU, computed in batches of ``data.evaluation_size``."""
    logits = []
    for run in runs:
        with autocast(run.device, precision):
            parts = images.to(run.device).split(run.settings.data.evaluation_size)
            outputs = [average_views(run.net.members, run.crop.views(part, tta)).cpu() for part in parts]
        logits.append(torch.cat(outputs))
    return weight_members(logits, weights)


@torch.inference_mode()
def _measure(
    forward: Callable[[Tensor], Tensor], corruptions: Corruptions, kind: str, severity: int
) -> dict[str, float]:
    parts = [(forward(images), labels.cpu()) for images, labels in corruptions.batches(kind, severity)]
    logits, targets = map(torch.cat, zip(*parts, strict=True))
    metrics = basic_metrics(mean_logits(logits), targets)
    if logits.shape[1] > 1:
        for index, member in enumerate(logits.unbind(1)):
            metrics |= {f"member_{index}/{key}": value for key, value in basic_metrics(member, targets).items()}
    return metrics
