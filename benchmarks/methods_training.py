"""A plain PyTorch training loop, and the methods that use it (:mod:`methods`).

BatchEnsemble, Masksembles, Packed-Ensembles and MC dropout are torch-uncertainty's, last-layer Laplace is
laplace-torch's.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import timm
import torch
import torch.nn.functional as F
from study_plans import OTHER_SEED
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from mixmo.config.hardware import training_device
from mixmo.config.settings import Settings
from mixmo.data.batches import Augmentation
from mixmo.data.module import DataModule
from mixmo.data.orders import EpochOrder
from mixmo.evaluation.inference import autocast
from mixmo.seeding import seed_for
from mixmo.training.optimizers import build_optimizer, warmup_steps

MEMBERS = 2  # of BatchEnsemble and Masksembles, as of MixMo in the studies: a batch is divided among them
PACKED = (4, 2)  # members and alpha of Packed-Ensembles: alpha² / members = 1 network's computation
MASK_SCALE = 2.0
SNAPSHOTS = 4
SMOOTHING = 0.1
DROPOUT, SAMPLES = 0.3, 10  # the rate is that of the WideResNet paper
SWA_START, SWA_RATE = 0.75, 0.1
"""As shares of the passes and of the tuned peak learning rate. With a rate of 0.5, as published, tuning on the digits
chose the lowest peak of its space, too low for the passes before averaging."""


class SkippedError(Exception):
    """Raised if a method cannot be trained here or on this task."""


@dataclass(frozen=True)
class Trained:
    """A trained method.

    Attributes:
        members: Images (B, C, H, W) to logits (B, M, K).
        parameters: Trainable parameters of all networks that predict.
        images_seen: Images through the network in training; those through a smaller network count by computation.
        weighted: Whether the members' logits are still to be weighted.
    """

    members: Callable[[Tensor], Tensor]
    parameters: int
    images_seen: float
    weighted: bool = False


def cosine(progress: float) -> float:
    """Return the learning rate as a share of its peak, from 1 to 0 over training.

    Example:
        >>> cosine(0.0), cosine(0.5), cosine(1.0)
        (1.0, 0.5, 0.0)
    """
    return round(0.5 * (1 + math.cos(math.pi * progress)), 12)


def build(data: DataModule, settings: Settings, seed: int, backbone: str | None = None) -> nn.Module:
    """Build the task's network, or another one for its images, with random weights."""
    torch.manual_seed(seed)
    name = backbone or settings.model.backbone
    return timm.create_model(name, num_classes=len(data.classes), in_chans=settings.data.channels)


def steps_of(data: DataModule, settings: Settings) -> int:
    """Return the number of training steps of one network."""
    assert settings.trainer.max_epochs is not None
    return settings.trainer.max_epochs * (len(data.train) // settings.data.batch_size)


def batches(data: DataModule, settings: Settings, seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the augmented images and labels of each step, in the order in which mixmo trains on them."""
    device = training_device(settings.trainer.accelerator)
    images, size = data.train.to(device), settings.data.batch_size
    augment, generator, each = Augmentation(settings.data), torch.Generator(device), len(images) // size
    for step in range(steps):
        if step % each == 0:
            order = torch.tensor([*EpochOrder(len(images), seed, step // each)], device=device)
        index = order[step % each * size :][:size]
        torch.manual_seed(seed_for(seed, step, "global"))
        generator.manual_seed(seed_for(seed, step))
        yield augment.random(images.images, index, generator), images.labels[index]


def optimizer_of(net: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return the task's optimiser; BatchEnsemble's factors, which are about 1, are not decayed."""
    own = settings.optimizer
    optimizer = build_optimizer(net, own, own.peak_lr(1))
    factors = [each for name, each in net.named_parameters() if name.endswith(("r_group", "s_group"))]
    if factors:
        known = {id(each) for each in factors}
        for group in optimizer.param_groups:
            group["params"] = [each for each in group["params"] if id(each) not in known]
        optimizer.add_param_group({**optimizer.param_groups[0], "params": factors, "weight_decay": 0.0})
    return optimizer


def fit(
    net: nn.Module,
    data: DataModule,
    settings: Settings,
    seed: int,
    steps: int | None = None,
    rate: Callable[[float], float] = cosine,
    smoothing: float = 0.0,
    after: Callable[[int], None] | None = None,
) -> int:
    """Train a network, and return how many images it has seen.

    Args:
        net: Images (B, C, H, W) to logits (B, K), or to those of M members (M * B, K).
        data: The images.
        settings: The settings of ``single`` on the task.
        seed: Seed of all draws.
        steps: Number of steps, by default that of the whole training.
        rate: Maps the completed share of training to a share of the peak learning rate.
        smoothing: Label smoothing.
        after: Called after each step with the number of steps done.
    """
    total = steps_of(data, settings) if steps is None else steps
    own, device = settings.data, training_device(settings.trainer.accelerator)
    warmup = max(1, warmup_steps(len(data.train), own.batch_size, 1, settings.schedule.warmup_epochs))
    net.to(device).train()
    optimizer, peak = optimizer_of(net, settings), settings.optimizer.peak_lr(1)
    for step, (images, labels) in enumerate(batches(data, settings, seed, total)):
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / warmup) * rate(step / total)
        with autocast(device, settings.trainer.precision or "32-true"):
            logits = net(images)
        targets = labels.repeat(len(logits) // len(labels))
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), targets, label_smoothing=smoothing).backward()
        optimizer.step()
        if after is not None:
            after(step + 1)
    net.eval()
    return total * own.batch_size


def averaged(nets: Sequence[nn.Module], seen: float, weighted: bool = False) -> Trained:
    """Return networks as the members of an ensemble."""
    return Trained(lambda x: torch.stack([net(x) for net in nets], 1), size_of(*nets), seen, weighted)


def size_of(*nets: nn.Module) -> int:
    """Return the number of trainable parameters of networks."""
    return sum(each.numel() for net in nets for each in net.parameters() if each.requires_grad)


def train_single(data: DataModule, settings: Settings, seed: int, smoothing: float = 0.0) -> Trained:
    """Train one network."""
    net = build(data, settings, seed)
    return averaged([net], fit(net, data, settings, seed, smoothing=smoothing))


def train_two(data: DataModule, settings: Settings, seed: int) -> Trained:
    """Train two networks for half the steps each."""
    nets = [build(data, settings, seed + OTHER_SEED * number) for number in (0, 1)]
    steps = steps_of(data, settings) // 2
    return averaged(nets, sum(fit(net, data, settings, seed + OTHER_SEED * i, steps) for i, net in enumerate(nets)))


def train_swa(data: DataModule, settings: Settings, seed: int) -> Trained:
    """Train one network, and average its weights at the end of each of the last epochs."""
    net, each = build(data, settings, seed), len(data.train) // settings.data.batch_size
    average = AveragedModel(net.to(training_device(settings.trainer.accelerator)))
    begin = int(SWA_START * steps_of(data, settings) / each) * each

    def collect(step: int) -> None:
        if step > begin and step % each == 0:
            average.update_parameters(net)

    def rate(progress: float) -> float:
        return SWA_RATE + (1 - SWA_RATE) * cosine(min(1.0, progress / SWA_START))

    seen = fit(net, data, settings, seed, rate=rate, after=collect)
    update_bn(batches(data, settings, seed, each), average)
    return averaged([average.module.eval()], seen)


def train_snapshots(data: DataModule, settings: Settings, seed: int) -> Trained:
    """Train one network with cosine restarts, and keep a copy at the end of each cycle."""
    net, total, nets = build(data, settings, seed), steps_of(data, settings), list[nn.Module]()
    cycles = min(SNAPSHOTS, total)
    ends = [math.ceil(total * (cycle + 1) / cycles) for cycle in range(cycles)]

    def collect(step: int) -> None:
        if step in ends:
            nets.append(copy.deepcopy(net).eval())

    seen = fit(net, data, settings, seed, rate=lambda progress: cosine(progress * cycles % 1), after=collect)
    return averaged(nets, seen)


def train_flipped(data: DataModule, settings: Settings, seed: int) -> Trained:
    """Train one network; it predicts each image and its mirror image."""
    if not settings.data.flip:
        raise SkippedError("training mirrors no images (data.flip), so that mirror images are of no class")
    single = train_single(data, settings, seed)
    members = lambda x: torch.cat([single.members(x), single.members(x.flip(3))], 1)  # noqa: E731
    return Trained(members, single.parameters, single.images_seen)


def train_dropout(data: DataModule, settings: Settings, seed: int) -> Trained:
    """Train one network with dropout between the convolutions of its blocks, also applied at prediction."""
    mc_dropout = need("torch_uncertainty.methods", "torch-uncertainty").mc_dropout
    net = build(data, settings, seed)
    replace_layers(net, lambda name, layer: nn.Sequential(nn.Dropout(DROPOUT), layer) if "conv2" in name else None)
    seen = fit(net, data, settings, seed)
    sampled = mc_dropout(net, SAMPLES, on_batch=False).eval()
    torch.manual_seed(seed)
    return Trained(lambda x: by_member(sampled(x), SAMPLES), size_of(net), seen)


def train_laplace(data: DataModule, settings: Settings, seed: int) -> Trained:
    """Train one network, and fit a Laplace posterior to its last layer, its prior chosen by marginal likelihood."""
    laplace = need("laplace", "laplace-torch").Laplace
    device = training_device(settings.trainer.accelerator)
    net, images = build(data, settings, seed), data.train.to(device)
    seen = fit(net, data, settings, seed)
    inputs = Augmentation(settings.data).center(images.images, torch.arange(len(images), device=device))
    posterior = laplace(net, "classification", subset_of_weights="last_layer", hessian_structure="kron")
    posterior.fit(DataLoader(TensorDataset(inputs, images.labels), settings.data.batch_size))
    posterior.optimize_prior_precision(method="marglik")
    least = torch.finfo(torch.float32).tiny
    members = lambda x: posterior(x, link_approx="probit").clamp(min=least).log()[:, None]  # noqa: E731
    return Trained(members, size_of(net), seen)


def train_batch_ensemble(data: DataModule, settings: Settings, seed: int) -> Trained:
    """Train a network whose members share weights up to channel-wise factors; each member sees a part of each batch."""
    layers = need("torch_uncertainty.layers", "torch-uncertainty")
    net = build(data, settings, seed)

    def converted(_: str, layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, nn.Conv2d):
            found = layers.BatchConv2d.from_conv2d(layer, MEMBERS)
            found.conv.weight = layer.weight  # as initialised for this network
            return found
        return layers.BatchLinear.from_linear(layer, MEMBERS) if isinstance(layer, nn.Linear) else None

    replace_layers(net, converted)
    return repeated(net, data, settings, seed)


def train_masksembles(data: DataModule, settings: Settings, seed: int) -> Trained:
    """Train a network whose members use different channels; each member sees a part of each batch."""
    layers = need("torch_uncertainty.layers", "torch-uncertainty")
    net = build(data, settings, seed)

    def converted(_: str, layer: nn.Module) -> nn.Module | None:
        if not isinstance(layer, nn.Conv2d) or layer.in_channels < 10:  # too few channels to choose from: the stem
            return None
        found = layers.MaskedConv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, MEMBERS, MASK_SCALE, layer.stride, layer.padding,
            bias=False,
        )  # fmt: skip
        found.conv.weight = layer.weight
        return found

    with patch.object(np.random, "default_rng", return_value=np.random.default_rng(seed)):  # masks have no seed
        replace_layers(net, converted)
    return repeated(net.float(), data, settings, seed)


def train_packed(data: DataModule, settings: Settings, seed: int) -> Trained:
    """Train narrow networks as groups of wide layers, at about the cost of one network."""
    layers = need("torch_uncertainty.layers", "torch-uncertainty")
    net, (members, alpha) = build(data, settings, seed), PACKED

    def converted(name: str, layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, nn.Conv2d):
            found = layers.PackedConv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, alpha, members, stride=layer.stride,
                padding=layer.padding, bias=False, first=name == "conv_stem",
            )  # fmt: skip
            nn.init.kaiming_normal_(found.weight)
            return found
        if isinstance(layer, nn.BatchNorm2d):
            return nn.BatchNorm2d(layer.num_features * alpha)
        if isinstance(layer, nn.Linear):
            return layers.PackedLinear(layer.in_features, layer.out_features, alpha, members, last=True)
        return None

    replace_layers(net, converted)
    seen = fit(net, data, settings, seed)
    return Trained(lambda x: by_member(net(x), members), size_of(net), seen)


def train_duo(data: DataModule, settings: Settings, seed: int) -> Trained:
    """Train the network and one of half its width, for fewer steps each, so that both together cost one training.

    Their logits are weighted (Asymmetric Duos, arXiv 2505.18636) by :func:`weigh`.
    """
    stem, _, width = settings.model.backbone.rpartition("_")
    if not width.isdecimal() or int(width) < 2:
        raise SkippedError(f"{settings.model.backbone} has no width that could be halved")
    names = (settings.model.backbone, f"{stem}_{int(width) // 2}")
    nets = [build(data, settings, seed + OTHER_SEED * number, name) for number, name in enumerate(names)]
    costs = [macs_of(net.eval(), first_images(data, settings, 1)) for net in nets]
    steps = int(steps_of(data, settings) * costs[0] / sum(costs))
    seen = [fit(net, data, settings, seed + OTHER_SEED * number, steps) for number, net in enumerate(nets)]
    return averaged(nets, seen[0] + seen[1] * costs[1] / costs[0], weighted=True)


METHODS: dict[str, Callable[[DataModule, Settings, int], Trained]] = {
    "single": train_single,
    "single, label smoothing": partial(train_single, smoothing=SMOOTHING),
    "two networks, equal training": train_two,
    "SWA": train_swa,
    "snapshot ensemble": train_snapshots,
    "flip TTA": train_flipped,
    "MC dropout": train_dropout,
    "last-layer Laplace": train_laplace,
    "BatchEnsemble": train_batch_ensemble,
    "Masksembles": train_masksembles,
    "Packed-Ensembles": train_packed,
    "Asymmetric Duo": train_duo,
}


def first_images(data: DataModule, settings: Settings, count: int) -> Tensor:
    """Return the first test images (count, C, H, W), preprocessed, on the CPU."""
    return Augmentation(settings.data).center(data.test.images, torch.arange(count))


def macs_of(members: Callable[[Tensor], Tensor], image: Tensor) -> float:
    """Return the multiply–accumulate operations to predict one image (1, C, H, W), as counted by torch."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        members(image)
    return float(counter.get_total_flops()) / 2


def need(module: str, package: str) -> Any:
    """Import a module of an optional package; raise ``SkippedError`` if it is missing."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise SkippedError(f"{package} is not installed")
    return importlib.import_module(module)


def replace_layers(net: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Replace each layer by ``make(name, layer)`` unless that returns ``None``."""
    for name, layer in list(net.named_modules()):
        if name and (found := make(name, layer)) is not None:
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, found)


def by_member(logits: Tensor, members: int) -> Tensor:
    """Reshape logits (M * B, K), one member after another, to (B, M, K)."""
    return logits.unflatten(0, (members, -1)).transpose(0, 1)


def repeated(net: nn.Module, data: DataModule, settings: Settings, seed: int) -> Trained:
    """Train a network whose members each see a part of a batch; every member predicts every image."""
    if settings.data.batch_size % MEMBERS:
        raise SkippedError(f"{MEMBERS} members cannot share a batch of {settings.data.batch_size}")
    seen = fit(net, data, settings, seed)
    return Trained(lambda x: by_member(net(x.repeat(MEMBERS, 1, 1, 1)), MEMBERS), size_of(net), seen)
