"""``mixmo benchmark``: what MixMo costs against the plain network, and what the fast settings buy.

Candidates are timed in turns within one run and compared pairwise, so that a noisy machine hits all alike.
"""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixmo.batch_mixing import BatchMixer, MixedBatch
from mixmo.config.data_settings import BatchSize, DataSettings, Side
from mixmo.config.hardware import Accelerator, Precision, default_precision, evaluation_factor, training_device
from mixmo.data.batches import BatchMaker
from mixmo.data.sets import DistinctBatch
from mixmo.evaluation.inference import autocast
from mixmo.fusing import fuse
from mixmo.header import MOST_MEMBERS
from mixmo.mixing import loss_weights
from mixmo.network import MixMo, create_backbone
from mixmo.training.optimizers import build_optimizer
from mixmo.validation import Boolean, Count, Integer, settings_class

Rows = dict[str, dict[str, float]]
Call = Callable[[], object]
Builder = Callable[[], Call]


@settings_class(frozen=True)
class Benchmark:
    """What is measured.

    Raises:
        InputError: if a value is out of its range.
    """

    backbone: str = "wide_resnet16_4"
    """A timm model name."""
    batch_size: BatchSize = 64
    """B, the mixtures of a step."""
    num_members: Annotated[Integer, Field(ge=1, le=MOST_MEMBERS)] = 2
    """M."""
    batch_repetition: Count = 1
    """b, how often an image stands in a batch."""
    image_size: Side = 32
    """Side of the square images."""
    num_classes: Count = 100
    """K."""
    mix_at: str | None = None
    """Module behind which features are mixed; null is behind the stem."""
    accelerator: Accelerator = "auto"
    """Where to measure."""
    precision: Precision | None = None
    """null takes what the device does best."""
    compile: Boolean = False
    """Measure compiled networks too."""
    rounds: Count = 10
    """Turns each candidate gets."""

    def __post_init__(self) -> None:
        self.data  # noqa: B018  (checks that the repetition divides the batch)

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return training_device(self.accelerator)

    @property
    def data(self) -> DataSettings:
        """The batches."""
        return DataSettings(batch_size=self.batch_size, batch_repetition=self.batch_repetition)

    def autocast(self, fast: bool = True) -> torch.autocast:
        """Return the context of the precision; float32 for the reference."""
        return autocast(self.device, (self.precision or default_precision(self.device)) if fast else "32-true")

    def network(self, members: int, fast: bool = True) -> nn.Module:
        """Return MixMo with M members, or the plain network for 0."""
        torch.manual_seed(0)
        net = (
            MixMo(self.backbone, members, num_classes=self.num_classes, mix_at=self.mix_at)
            if members
            else create_backbone(self.backbone, num_classes=self.num_classes)
        )
        return net.to(self.device, memory_format=torch.channels_last if fast else torch.contiguous_format)  # type: ignore[call-overload, no-any-return]

    def compiled(self, function: Callable[..., Any], wanted: bool | str) -> Callable[..., Any]:
        """Return the function, compiled if that is wanted, in the mode that a string names."""
        if not wanted:
            return function
        return torch.compile(function, dynamic=False, mode=wanted if isinstance(wanted, str) else None)


class Batches:
    """Makes batches from random uint8 images, as training does."""

    def __init__(self, case: Benchmark, members: int) -> None:
        self.generator = torch.Generator(case.device).manual_seed(0)
        size, device = (5000, case.image_size, case.image_size, 3), case.device
        images = torch.randint(256, size, dtype=torch.uint8, device=device, generator=self.generator)
        labels = torch.randint(case.num_classes, (5000,), device=device, generator=self.generator)
        net = MixMo(case.backbone, members, num_classes=case.num_classes, mix_at=case.mix_at)
        self.maker = BatchMaker(case.data, BatchMixer(net, batch_repetition=case.batch_repetition))
        self.shape = net.encoder_shape(case.image_size, case.image_size)
        distinct = torch.arange(case.batch_size // case.batch_repetition, device=device)
        self.batch = DistinctBatch(images, labels, distinct)

    def __call__(self) -> MixedBatch:
        """Make a batch: pairing, augmentation, masks."""
        return self.maker(self.batch, self.generator)

    def remix(self, mixed: MixedBatch) -> MixedBatch:
        """Draw new masks for a batch whose images are ready."""
        mix = self.maker.mixer.mixer.sample(len(mixed.inputs), self.shape, self.generator)
        return mixed._replace(masks=mix.masks, weights=loss_weights(mix.ratios))


class TrainingStep:
    """One training step, whole or phase by phase; MixMo's draws its masks.

    Args:
        case: What is measured.
        members: M, or 0 for the plain network.
        fast: Channels last, the case's precision and a fused optimiser; otherwise as the paper's code ran.
        compiled: Compile network and loss; a string is a mode of ``torch.compile``.
        input_path: Start from uint8 images rather than from a batch that is ready.
    """

    def __init__(
        self, case: Benchmark, members: int, fast: bool = True, compiled: bool | str = False, input_path: bool = False
    ) -> None:
        self.case, self.members, self.fast, self.input_path = case, members, fast, input_path
        self.net, self.batches = case.network(members, fast), Batches(case, max(members, 1))
        self.optimizer = build_optimizer(self.net, lr=0.01, fused=fast)
        self.ready = self._set_layout(self.batches())
        self._loss_of = case.compiled(self._loss, compiled)

    def _loss(self, mixed: MixedBatch) -> Tensor:
        if self.members:
            return mixed.loss(self.net(mixed.inputs, mixed.masks))
        return F.cross_entropy(self.net(mixed.inputs[:, 0]), mixed.targets[:, 0])

    def data(self) -> MixedBatch:
        """Return the batch."""
        if self.input_path:
            return self._set_layout(self.batches())
        return self.batches.remix(self.ready) if self.members else self.ready

    def _set_layout(self, mixed: MixedBatch) -> MixedBatch:
        return mixed if self.fast else mixed._replace(inputs=mixed.inputs.contiguous())

    def forward(self, mixed: MixedBatch) -> Tensor:
        """Return the loss."""
        with self.case.autocast(self.fast):
            loss: Tensor = self._loss_of(mixed)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Move the weights."""
        self.optimizer.step()

    def __call__(self) -> None:
        """Do all of it."""
        self.backward(self.forward(self.data()))
        self.update()


def inference(
    case: Benchmark, nets: Callable[[], list[nn.Module]], batch_size: int, compiled: bool | str = False
) -> Call:
    """Return one pass of some networks, which are built here, over a batch of images."""
    shape = (batch_size, 3, case.image_size, case.image_size)
    images = torch.randn(shape, device=case.device).contiguous(memory_format=torch.channels_last)
    passes = [case.compiled(net.eval().forward, compiled) for net in nets()]

    @torch.inference_mode()
    def run() -> None:
        with case.autocast():
            for each in passes:
                each(images)

    return run


def networks(case: Benchmark, members: int, count: int = 1, fused: bool = False) -> list[nn.Module]:
    """Return some networks of M members, plain ones for 0, or fused."""
    nets = [case.network(members) for _ in range(count)]
    return [fuse(net) for net in nets] if fused else nets  # type: ignore[arg-type]


def benchmark(case: Benchmark) -> dict[str, Rows]:
    """Measure a case.

    Args:
        case: What is measured.

    Returns:
        Tables by title: rows by candidate, each with ``ms`` (median), ``low`` and ``high`` (quartiles), ``images/s``,
        ``ratio`` (median of pairwise ratios against the row its table's title names) and ``MiB`` (peak memory).

    Raises:
        InputError: if the backbone is unknown or cannot take such images.
    """
    members, label = case.num_members, f"MixMo, M = {case.num_members}"
    steps = {
        "plain network": partial(TrainingStep, case, 0),
        label: partial(TrainingStep, case, members),
        f"{label}, from uint8 images": partial(TrainingStep, case, members, input_path=True),
        f"{label}, float32 NCHW": partial(TrainingStep, case, members, fast=False),
    }
    tables = {"training step, ratio to the plain network": time_builders(case, steps, case.batch_size)}
    nets = _networks_to_pass(case, label)
    passes = {name: partial(inference, case, each, case.batch_size) for name, each in nets.items()}
    tables["inference, ratio to the plain network"] = time_builders(case, passes, case.batch_size)
    if case.compile:
        compiled = {name: partial(steps[name], compiled=True) for name in ("plain network", label)}
        tables["compiled training step, ratio to the plain network"] = time_builders(
            case, compiled, case.batch_size, memory=False
        )
        passes = {name: partial(each, compiled=True) for name, each in passes.items()}
        tables["compiled inference, ratio to the plain network"] = time_builders(
            case, passes, case.batch_size, memory=False
        )
    factor = evaluation_factor(case.device)
    evaluated: dict[str, Builder] = {
        "training step": steps[label],
        "evaluation": partial(inference, case, nets[label], factor * case.batch_size),
    }
    rows = time_builders(case, evaluated, case.batch_size, memory=False)
    rows["evaluation"]["images/s"] *= factor
    for row in rows.values():
        row["ratio"] = row["images/s"] / rows["training step"]["images/s"]
    tables["evaluation, ratio of images/s to a training step's"] = rows
    parts: dict[str, Callable[[], Call]] = {
        "training step": steps[label],
        "input path": partial(Batches, case, members),
    }
    tables["input path, ratio to the training step"] = time_builders(case, parts, case.batch_size, memory=False)
    return tables


def _networks_to_pass(case: Benchmark, label: str) -> dict[str, Callable[[], list[nn.Module]]]:
    """Return what builds the networks whose inference is timed; those that mix later cannot be fused."""
    members = case.num_members
    nets: dict[str, Callable[[], list[nn.Module]]] = {"plain network": partial(networks, case, 0)}
    if not case.mix_at:
        nets["fused"] = partial(networks, case, members, fused=True)
    return nets | {
        label: partial(networks, case, members),
        f"{members} plain networks": partial(networks, case, 0, members),
    }


def time_builders(case: Benchmark, builders: Mapping[str, Builder], batch_size: int, memory: bool = True) -> Rows:
    """Return the rows of a table; ratios are against its first candidate."""
    calls = {name: build() for name, build in builders.items()}
    seconds = time_in_turns(calls, case.rounds, case.device)
    first = next(iter(seconds.values()))
    rows = {name: summarise(taken, against=first) for name, taken in seconds.items()}
    for name, row in rows.items():
        row["images/s"] = 1e3 * batch_size / row["ms"]
        if memory:
            row["MiB"] = peak_memory(builders[name], case.device)
    return rows


def time_in_turns(
    calls: Mapping[str, Call], rounds: int, device: torch.device | None = None, warmup: int = 2
) -> dict[str, list[float]]:
    """Return seconds per call, ``rounds`` for each, taken in turns. On a GPU each turn is of ten calls."""
    on_gpu = device is not None and device.type == "cuda"
    repeats = 10 if on_gpu else 1
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            if on_gpu:
                torch.cuda.synchronize()
            if turn >= warmup:
                seconds[name].append((time.perf_counter() - start) / repeats)
    return seconds


def summarise(seconds: list[float], against: list[float] | None = None) -> dict[str, float]:
    """Return the median in ms with its quartiles and, against another candidate, the median of paired ratios.

    Example:
        >>> summarise([0.001, 0.002, 0.003], against=[0.001, 0.001, 0.001])
        {'ms': 2.0, 'low': 1.0, 'high': 3.0, 'ratio': 2.0}
    """
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    found = {"ms": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high}
    if against is not None:
        found["ratio"] = statistics.median(a / b for a, b in zip(seconds, against, strict=True))
    return found


def peak_memory(build: Builder, device: torch.device) -> float:
    """Return the most MiB of tensors alive at a time while a candidate is built and called three times."""
    gc.collect()  # what dies during the measurement would count as negative
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _build_and_call(build)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silent(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        _build_and_call(build)
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    return float(max(itertools.accumulate(change for _, change in changes))) / 2**20


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what torch's profiler prints of itself, from C++, from standard error."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _build_and_call(build: Builder) -> None:
    call = build()
    for _ in range(3):
        call()
