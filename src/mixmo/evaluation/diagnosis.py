"""Diagnosis: whether the members are separate, and fit their training mixtures."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from mixmo.cache import keep_json, read_json
from mixmo.data.policies import Policy
from mixmo.evaluation.inference import TrainedRun
from mixmo.network import MixMo

IMAGES = 16
"""Images that each member is shown, next to as many for the others."""

OWN = 0.75
"""Share of a unit's variance that one member's image has to cause for the unit to be its own."""


@dataclass(frozen=True)
class Diagnosis:
    """Why a network does well or badly; NaN where something is not known.

    Attributes:
        train_accuracy: Mean over members in the epoch of the checkpoint, on the augmented mixtures of training.
        harder: Whether pixels were mixed or changed by a policy, which keeps that accuracy low.
        selectivity: Share of the variance of a member's logits that its own image causes, mean over members: 1 where
            the others' images do not matter, 1 / M where members are copies of each other.
        separate_units: Share of the units before the heads in which one member's image causes at least three quarters
            of the variance.
    """

    train_accuracy: float = math.nan
    harder: bool = False
    selectivity: float = math.nan
    separate_units: float = math.nan

    def flat(self) -> dict[str, float]:
        """Return what is known by the keys of ``test.json``."""
        return {key: value for key, value in asdict(self).items() if key != "harder" and not math.isnan(value)}


def diagnose(run: TrainedRun, epoch: int, refresh: bool = False) -> Diagnosis:
    """Return the diagnosis of a run's checkpoint, of an epoch; what takes forward passes is cached in its folder."""
    own: dict[str, float] = {}
    if run.settings.model.num_members > 1:
        about = run.depends_on("test")
        file = run.path / "predictions" / f"separation-{run.checkpoint}.json"
        known = None if refresh else read_json(file)
        if known is None or known["about"] != about:
            count = len(run.images("test")[0])
            chosen = np.linspace(0, count - 1, min(IMAGES, count)).round().astype(int)
            images = run.data.batch(chosen.tolist())
            known = {"about": about, "separation": separation(run.network, run.prepare(images))}
            keep_json(file, known)
        own = known["separation"]
    harder = run.settings.pixels.kind != "none" or Policy.needed(run.settings.data)
    return Diagnosis(_train_accuracy(run, epoch), harder, **own)


@torch.inference_mode()
def separation(net: MixMo, images: Tensor) -> dict[str, float]:
    """Return ``selectivity`` and ``separate_units`` by conditional variances (Havasi et al. 2021, section 4).

    V_i is the variance of a number in the network (a unit's activation, a logit) when member i's image changes and the
    others' stay, averaged over the others' images; V_i / Σ_j V_j is the share that member i's image causes. The images
    (n, C, h, w) are prepared for the network of M >= 2 members.
    """
    count, members = len(images), net.num_members
    index = torch.arange(count, device=images.device)
    units: list[Tensor] = []
    logits: list[Tensor] = []
    for member in range(members):
        seen = []
        for shift in range(count):  # the others' images
            places = ((shift + torch.arange(members, device=images.device)) % count).repeat(count, 1)
            places[:, member] = index
            seen.append([each.cpu().double().var(0, correction=0) for each in _activations(net, images[places])])
        for variances, found in zip((units, logits), zip(*seen, strict=True), strict=True):
            variances.append(torch.stack(found).mean(0))
    by_unit, by_logit = torch.stack(units), torch.stack(logits).mean(2)  # (M, F), (M, M)
    whole = by_unit.sum(0)
    changing = whole > 1e-12 * whole.max()
    own = by_logit.diagonal() / by_logit.sum(0)
    separate = (by_unit.amax(0) >= OWN * whole)[changing]
    return {"selectivity": float(own.mean()), "separate_units": float(separate.double().mean())}


def _activations(net: MixMo, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for inputs (B, M, C, H, W), the heads' inputs (B, F), averaged over positions, and the logits."""
    seen: list[Tensor] = []
    handle = net.classifiers[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    try:
        logits = net(inputs)
    finally:
        handle.remove()
    return (seen[0].flatten(2).mean(2) if seen[0].dim() > 2 else seen[0]), logits


def _train_accuracy(run: TrainedRun, epoch: int) -> float:
    """Return an epoch's accuracy in ``metrics.csv``; NaN if there is none, as for images with several labels."""
    rows = [row for row in run.folder.known_metrics() if row["epoch"] == epoch]
    found = [value for row in rows for key, value in row.items() if re.fullmatch(r"train_member_\d+_accuracy", key)]
    return statistics.fmean(found) if found else math.nan
