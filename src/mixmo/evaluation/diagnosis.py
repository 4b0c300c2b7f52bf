"""Diagnosis of a run: whether its members are separate and fit their training mixtures."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from mixmo.cache import cache_json, read_json
from mixmo.data.policies import Policy
from mixmo.evaluation.inference import TrainedRun
from mixmo.network import MixMo

IMAGES = 16
"""Number of images shown to each member, and to the others at the same time."""

SEPARATE = 0.75
"""A unit is separate if one member's image causes at least this share of its variance."""


@dataclass(frozen=True)
class Diagnosis:
    """Metrics that explain why a network does well or badly; NaN if unknown.

    Attributes:
        train_accuracy: Accuracy on the augmented training mixtures in the checkpoint's epoch, mean over members.
        harder: Whether pixel mixing or an augmentation policy makes these mixtures harder, lowering that accuracy.
        selectivity: Share of the variance of a member's logits that is due to its own image, mean over members: 1 if
            the others' images have no effect, 1 / M if members are copies of each other.
        separate_units: Share of the units before the heads with at least three quarters of their variance due to one
            member's image.
    """

    train_accuracy: float = math.nan
    harder: bool = False
    selectivity: float = math.nan
    separate_units: float = math.nan

    def flat(self) -> dict[str, float]:
        """Return the known values by key of ``test.json``."""
        return {key: value for key, value in asdict(self).items() if key != "harder" and not math.isnan(value)}


def diagnose(run: TrainedRun, epoch: int, refresh: bool = False) -> Diagnosis:
    """Diagnose a run's checkpoint of an epoch; results of forward passes are cached in the run's folder."""
    measured: dict[str, float] = {}
    if run.settings.model.num_members > 1:
        about = run.depends_on("test")
        file = run.path / "predictions" / f"separation{run.suffix}-{run.checkpoint}.json"
        cached = None if refresh else read_json(file)
        if cached is None or not about.items() <= cached["about"].items():
            count = len(run.images("test")[0])
            chosen = np.linspace(0, count - 1, min(IMAGES, count)).round().astype(int)
            images = run.data.batch(chosen.tolist())
            cached = {"about": about, "separation": separation(run.net, run.prepare(images))}
            cache_json(file, cached)
        measured = cached["separation"]
    harder = run.settings.pixels.kind != "none" or Policy.needed(run.settings.data)
    return Diagnosis(_train_accuracy(run, epoch), harder, **measured)


@torch.inference_mode()
def separation(net: MixMo, images: Tensor) -> dict[str, float]:
    """Return ``selectivity`` and ``separate_units`` by conditional variances (Havasi et al. 2021, section 4).

    V_i is the variance of an activation or a logit as only member i's image changes, averaged over the others' images;
    V_i / Σ_j V_j is the share due to member i's image. The images (n, C, h, w) are prepared for the network, which has
    M >= 2 members.
    """
    count, members = len(images), net.num_members
    index = torch.arange(count, device=images.device)
    units: list[Tensor] = []
    logits: list[Tensor] = []
    for member in range(members):
        conditional = []
        for shift in range(count):  # selects the others' images
            chosen = ((shift + torch.arange(members, device=images.device)) % count).repeat(count, 1)
            chosen[:, member] = index
            conditional.append([x.cpu().double().var(0, correction=0) for x in _activations(net, images[chosen])])
        for means, variances in zip((units, logits), zip(*conditional, strict=True), strict=True):
            means.append(torch.stack(variances).mean(0))
    by_unit, by_logit = torch.stack(units), torch.stack(logits).mean(2)  # (M, F), (M, M)
    total = by_unit.sum(0)
    changing = total > 1e-12 * total.max()
    selectivity = by_logit.diagonal() / by_logit.sum(0)
    separate = (by_unit.amax(0) >= SEPARATE * total)[changing]
    return {"selectivity": float(selectivity.mean()), "separate_units": float(separate.double().mean())}


def _activations(net: MixMo, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the heads' inputs (B, F), averaged over positions, and the logits, for inputs (B, M, C, H, W)."""
    features: list[Tensor] = []
    handle = net.classifiers[0].register_forward_pre_hook(lambda module, arguments: features.append(arguments[0]))
    try:
        logits = net(inputs)
    finally:
        handle.remove()
    return (features[0].flatten(2).mean(2) if features[0].dim() > 2 else features[0]), logits


def _train_accuracy(run: TrainedRun, epoch: int) -> float:
    """Return an epoch's training accuracy from ``metrics.csv``; NaN if it has none, as for multi-label images."""
    rows = [row for row in run.folder.known_metrics() if row["epoch"] == epoch]
    values = [value for row in rows for key, value in row.items() if re.fullmatch(r"train_member_\d+_accuracy", key)]
    return statistics.fmean(values) if values else math.nan
