"""``mixmo benchmark``: the cost of MixMo relative to the plain network, and the gain from the fast settings.

Candidates are timed interleaved in one process and compared pairwise, so that a noisy machine affects all equally.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from mixmo.config.data_settings import BatchSize, DataSettings
from mixmo.config.hardware import Accelerator, Precision, default_precision, training_device
from mixmo.config.settings import ModelSettings, OptimizerSettings, Settings
from mixmo.data.given import open_given
from mixmo.data.module import DataModule
from mixmo.evaluation.inference import autocast
from mixmo.fusing import fuse
from mixmo.header import Members, Side
from mixmo.network import MixMo, create_backbone
from mixmo.training.build import build_network
from mixmo.training.loaders import Loaders
from mixmo.training.step import Training
from mixmo.training.trainer import build_precision, silence_lightning
from mixmo.validation import Boolean, Count, settings_class

STEPS = 10
"""Calls per GPU turn, not synchronised one by one."""

Rows = dict[str, dict[str, float]]
Timer = Callable[[], float]
"""Runs the code once and returns seconds."""
Builder = Callable[..., Timer]


@settings_class(frozen=True)
class Benchmark:
    """What to measure."""

    backbone: str = "wide_resnet16_4"
    """A timm model name."""
    batch_size: BatchSize = 64
    """B, the mixtures of a step."""
    num_members: Members = 2
    """M."""
    batch_repetition: Count = 1
    """b, how often an image appears in a batch."""
    image_size: Side = 32
    """Side of the square images."""
    num_classes: Count = 100
    """K."""
    mix_at: str | None = None
    """Module behind which features are mixed; null is behind the stem."""
    accelerator: Accelerator = "auto"
    """Where to measure."""
    precision: Precision | None = None
    """null is the best for the device."""
    compile: Boolean = False
    """Measure compiled networks too."""
    rounds: Count = 10
    """How often each candidate is timed."""

    def __post_init__(self) -> None:
        self.data  # noqa: B018  (checks that the repetition divides the batch)

    @property
    def device(self) -> torch.device:
        """The device to measure on."""
        return training_device(self.accelerator)

    @property
    def fastest(self) -> Precision:
        """The requested precision, or the best for the device."""
        return self.precision or default_precision(self.device)

    @property
    def data(self) -> DataSettings:
        """The settings of the batches."""
        return DataSettings(
            batch_size=self.batch_size, batch_repetition=self.batch_repetition, validation=0.0, in_memory=True
        )


class TrainingStep(Callback):
    """Timer of :class:`mixmo.training.step.Training`'s step on random images, run by Lightning as in ``mixmo fit``.

    A call runs one epoch of one step (ten on a GPU) and returns the seconds per step.
    """

    def __init__(
        self, case: Benchmark, members: int, precision: Precision | None = None, compiled: bool = False
    ) -> None:
        self.steps = STEPS if case.device.type == "cuda" else 1
        model = ModelSettings(backbone=case.backbone, num_members=members, mix_at=case.mix_at, compile=compiled)
        settings = Settings(model=model, data=case.data, optimizer=OptimizerSettings(lr=1e-4))
        count = max(case.num_classes, self.steps * case.batch_size // case.batch_repetition)
        images = torch.randint(256, (count, case.image_size, case.image_size, 3), dtype=torch.uint8)
        labels = torch.arange(count) % case.num_classes
        data = DataModule(settings.data, settings.seed, given={"train": open_given((images, labels), "train")})
        self.loaders = Loaders(data, members)
        self.training = Training(settings, build_network(settings, data), self.loaders)
        with silence_lightning():
            self.trainer = L.Trainer(
                accelerator=case.accelerator, devices=1, callbacks=[self],
                plugins=[build_precision(precision or case.fastest, case.accelerator)],
                max_epochs=0, limit_train_batches=self.steps, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip

    def __call__(self) -> float:
        """Run an epoch."""
        self.trainer.fit_loop.max_epochs = self.trainer.current_epoch + 1
        with silence_lightning():
            self.trainer.fit(self.training, datamodule=self.loaders)
        return self.seconds

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        synchronize(pl_module.device)
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        synchronize(pl_module.device)
        self.seconds = (time.perf_counter() - self._start) / self.steps


def time_batches(case: Benchmark) -> Timer:
    """Return a timer of making a batch, the part of a step with pairing, augmentation and masks."""
    step = TrainingStep(case, case.num_members)
    step()
    batch, generator = next(iter(step.loaders.sample_batches(0, 1))), torch.Generator(case.device).manual_seed(0)
    mixer, augment = step.training.mixer, step.training.augment
    return partial(time_call, lambda: mixer.mix(augment.source(batch, generator), generator), case.device)


def time_inference(case: Benchmark, members: int, count: int = 1, fused: bool = False, compiled: bool = False) -> Timer:
    """Return a timer of ``count`` networks of M members (0: plain networks) on a batch of images."""

    def build() -> nn.Module:
        if not members:
            return create_backbone(case.backbone, num_classes=case.num_classes)
        net = MixMo(case.backbone, members, num_classes=case.num_classes, mix_at=case.mix_at)
        return fuse(net) if fused else net

    passes = []
    for _ in range(count):
        net = build().eval().to(case.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        passes.append(torch.compile(net.forward, dynamic=False) if compiled else net.forward)
    shape = (case.batch_size, 3, case.image_size, case.image_size)
    images = torch.randn(shape, device=case.device).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> None:
        with autocast(case.device, case.fastest):
            for forward in passes:
                forward(images)

    return partial(time_call, run, case.device)


def benchmark(case: Benchmark) -> dict[str, Rows]:
    """Return tables by title, each with a row per candidate.

    Rows have ``ms`` (median), ``low`` and ``high`` (quartiles), ``images/s``, ``ratio`` (median of pairwise ratios to
    the first row) and, on a GPU, ``MiB`` (peak memory of tensors).
    """
    members, label = case.num_members, f"MixMo, M = {case.num_members}"
    steps: dict[str, Builder] = {
        "single network": partial(TrainingStep, case, 1), label: partial(TrainingStep, case, members),
    }  # fmt: skip
    passes: dict[str, Builder] = {"plain network": partial(time_inference, case, 0)}
    if not case.mix_at:  # only networks that mix after the stem can be fused
        passes["fused"] = partial(time_inference, case, members, fused=True)
    passes |= {
        label: partial(time_inference, case, members),
        f"{members} plain networks": partial(time_inference, case, 0, members),
    }
    if case.compile:
        for builders in (steps, passes):
            builders |= {f"{name}, compiled": partial(build, compiled=True) for name, build in builders.items()}
    others: dict[str, Builder] = {
        f"{label}, float32": partial(TrainingStep, case, members, "32-true"),
        f"{label}, pairing, augmentation and masks alone": partial(time_batches, case),
    }
    return {
        "training step, ratio to the single network": _measure(case, steps | others),
        "inference, ratio to the plain network": _measure(case, passes),
    }


def _measure(case: Benchmark, builders: Mapping[str, Builder]) -> Rows:
    """Return the rows of a table, with ratios to its first candidate."""
    timers, memory = {}, {}
    for name, build in builders.items():
        on_gpu = case.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        timers[name] = build()
        timers[name]()
        memory[name] = {"MiB": (torch.cuda.max_memory_allocated() - before) / 2**20} if on_gpu else {}
    seconds = take_turns(timers, case.rounds)
    first = next(iter(seconds.values()))
    rows = {name: summarise(taken, against=first) for name, taken in seconds.items()}
    return {name: row | {"images/s": 1e3 * case.batch_size / row["ms"]} | memory[name] for name, row in rows.items()}


def synchronize(device: torch.device | None) -> None:
    """Wait until a GPU has finished."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def time_call(call: Callable[[], object], device: torch.device | None = None) -> float:
    """Return the seconds of a call; on a GPU, the mean of ten."""
    count = STEPS if device is not None and device.type == "cuda" else 1
    start = time.perf_counter()
    for _ in range(count):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / count


def take_turns(timers: Mapping[str, Timer], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Time each candidate ``rounds`` times, interleaved, after warm-up."""
    turns = [{name: timer() for name, timer in timers.items()} for _ in range(warmup + rounds)]
    return {name: [turn[name] for turn in turns[warmup:]] for name in timers}


def summarise(seconds: list[float], against: list[float] | None = None) -> dict[str, float]:
    """Return the median in ms with quartiles and, against another candidate, the median of paired ratios.

    Example:
        >>> summarise([0.001, 0.002, 0.003], against=[0.001, 0.001, 0.001])
        {'ms': 2.0, 'low': 1.0, 'high': 3.0, 'ratio': 2.0}
    """
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    row = {"ms": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high}
    if against is not None:
        row["ratio"] = statistics.median(a / b for a, b in zip(seconds, against, strict=True))
    return row
