"""Training and inference costs of a run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from mixmo.config.settings import Settings
from mixmo.evaluation.inference import TrainedRun
from mixmo.header import height_and_width
from mixmo.models.copying import copy_module
from mixmo.network import MixMo

BATCH = 64
"""Images in the batch whose latency is measured."""


def costs(run: TrainedRun) -> dict[str, float]:
    """Return the costs of a run.

    * ``parameters``: numbers in the network at inference.
    * ``macs``: multiply–accumulate operations for one image at inference, as counted by torch.
    * ``images``: images through the network in training (mixtures × epochs, twice for SAM), without those of a run it
      started from.
    * ``minutes``: duration of training.
    * ``latency_ms``: milliseconds for one image in a batch of 64, measured now on the CPU in float32.

    ``images`` and ``minutes`` are NaN if ``metrics.csv`` is missing or damaged.
    """
    net, images = _network(run)
    rows = run.folder.known_metrics()
    return _size(net, images) | {
        "images": training_images(run.settings, rows) if rows else math.nan,
        "minutes": sum(row["seconds"] for row in rows) / 60 if rows else math.nan,
        "latency_ms": _latency(net, images),
    }


def training_images(settings: Settings, rows: Sequence[Mapping[str, float]]) -> float:
    """Return how many images passed through the network in training; a step of SAM takes each twice."""
    return rows[-1]["step"] * settings.data.batch_size * (2 if settings.optimizer.sam_radius else 1)


def network_size(run: TrainedRun) -> dict[str, float]:
    """Return ``parameters`` and ``macs`` of :func:`costs`, without measuring time."""
    return _size(*_network(run))


def _network(run: TrainedRun) -> tuple[MixMo, torch.Tensor]:
    """Return the network, on the CPU wherever the run was evaluated, and a batch of its input size."""
    net = copy_module(run.network).cpu()
    own = run.settings.data.crop_size or run.settings.data.image_size
    size = run.data.size if own is None else height_and_width(own)  # opens the dataset only if that is left open
    return net, torch.randn(BATCH, net.in_chans, *size)


@torch.inference_mode()
def _size(net: MixMo, images: torch.Tensor) -> dict[str, float]:
    with FlopCounterMode(display=False) as counter:
        net(images[:1])
    return {"parameters": sum(each.numel() for each in net.parameters()), "macs": counter.get_total_flops() / 2}


@torch.inference_mode()
def _latency(net: MixMo, images: torch.Tensor) -> float:
    """Return milliseconds per image: the median of five passes after a warm-up."""
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        net(images)
        taken.append(time.perf_counter() - start)
    return 1e3 * statistics.median(taken[1:]) / len(images)
