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
from mixmo.models.copying import copy_module
from mixmo.network import MixMo

BATCH = 64
"""Batch size for measuring latency."""


def costs(run: TrainedRun) -> dict[str, float]:
    """Return the costs of a run.

    * ``parameters``: number of parameters at inference.
    * ``macs``: multiply–accumulate operations for one image at inference, counted by torch.
    * ``images``: images through the network in training (mixtures × epochs, twice for SAM), without pretraining.
    * ``minutes``: duration of training.
    * ``latency_ms``: milliseconds per image in a batch of 64, measured now on the CPU in float32.

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
    """Return the number of images through the network in training; SAM passes each twice."""
    return rows[-1]["step"] * settings.data.batch_size * (2 if settings.optimizer.sam_radius else 1)


def network_size(run: TrainedRun) -> dict[str, float]:
    """Return only ``parameters`` and ``macs`` of :func:`costs`."""
    return _size(*_network(run))


def _network(run: TrainedRun) -> tuple[MixMo, torch.Tensor]:
    """Return a copy of the network on the CPU, and a batch of its input size."""
    net = copy_module(run.net).cpu()
    return net, torch.randn(BATCH, net.in_chans, *run.header.input_size)


@torch.inference_mode()
def _size(net: MixMo, images: torch.Tensor) -> dict[str, float]:
    with FlopCounterMode(display=False) as counter:
        net(images[:1])
    return {"parameters": sum(p.numel() for p in net.parameters()), "macs": counter.get_total_flops() / 2}


@torch.inference_mode()
def _latency(net: MixMo, images: torch.Tensor) -> float:
    """Return milliseconds per image: the median of five passes after a warm-up."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        net(images)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[1:]) / len(images)
