"""``mixmo benchmark``: what MixMo costs against the plain network, and what the fast settings buy.

Candidates are timed in turns within one run and compared pairwise, so that a noisy machine affects all equally.
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
"""What a turn on a GPU consists of, where the host need not wait for each."""

Rows = dict[str, dict[str, float]]
Timer = Callable[[], float]
"""Does something and returns the seconds that one time took."""
Builder = Callable[..., Timer]


@settings_class(frozen=True)
class Benchmark:
    """What is measured."""

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
    def fastest(self) -> Precision:
        """The precision that was asked for, or what the device does best."""
        return self.precision or default_precision(self.device)

    @property
    def data(self) -> DataSettings:
        """The batches."""
        return DataSettings(
            batch_size=self.batch_size, batch_repetition=self.batch_repetition, validation=0.0, in_memory=True
        )


class TrainingStep(Callback):
    """The step of :class:`mixmo.training.step.Training`, as Lightning runs it in ``mixmo fit``, on random images.

    A call makes some steps, as an epoch of their own, and returns the seconds that one took.
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
        """Make the steps."""
        self.trainer.fit_loop.max_epochs = self.trainer.current_epoch + 1
        with silence_lightning():
            self.trainer.fit(self.training, datamodule=self.loaders)
        return self.seconds

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        synchronize(pl_module.device)
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop it."""
        synchronize(pl_module.device)
        self.seconds = (time.perf_counter() - self._start) / self.steps


def batch_making(case: Benchmark) -> Timer:
    """Return what times the part of a step in which a batch is made: pairing, augmentation, masks."""
    step = TrainingStep(case, case.num_members)
    step()
    batch, generator = next(iter(step.loaders.samples(0, 1))), torch.Generator(case.device).manual_seed(0)
    mixer, augment = step.training.mixer, step.training.augment
    return partial(time_call, lambda: mixer.mix(augment.source(batch, generator), generator), case.device)


def inference(case: Benchmark, members: int, count: int = 1, fused: bool = False, compiled: bool = False) -> Timer:
    """Return what times a pass of some networks of M members, plain ones for 0, or fused, over a batch of images."""

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
            for each in passes:
                each(images)

    return partial(time_call, run, case.device)


def benchmark(case: Benchmark) -> dict[str, Rows]:
    """Measure a case; return tables by title, each with a row for a candidate.

    Rows have ``ms`` (median), ``low`` and ``high`` (quartiles), ``images/s``, ``ratio`` (median of pairwise ratios
    against the first row) and, on a GPU, ``MiB`` (peak memory of tensors).
    """
    members, label = case.num_members, f"MixMo, M = {case.num_members}"
    steps: dict[str, Builder] = {
        "single network": partial(TrainingStep, case, 1), label: partial(TrainingStep, case, members),
    }  # fmt: skip
    passes: dict[str, Builder] = {"plain network": partial(inference, case, 0)}
    if not case.mix_at:  # what mixes later cannot be fused
        passes["fused"] = partial(inference, case, members, fused=True)
    passes |= {
        label: partial(inference, case, members),
        f"{members} plain networks": partial(inference, case, 0, members),
    }
    if case.compile:
        for builders in (steps, passes):
            builders |= {f"{name}, compiled": partial(build, compiled=True) for name, build in builders.items()}
    others: dict[str, Builder] = {
        f"{label}, float32": partial(TrainingStep, case, members, "32-true"),
        f"{label}, pairing, augmentation and masks alone": partial(batch_making, case),
    }
    return {
        "training step, ratio to the single network": _measure(case, steps | others),
        "inference, ratio to the plain network": _measure(case, passes),
    }


def _measure(case: Benchmark, builders: Mapping[str, Builder]) -> Rows:
    """Return the rows of a table; ratios are against its first candidate."""
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
    """Wait for a GPU to be done."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def time_call(call: Callable[[], object], device: torch.device | None = None) -> float:
    """Return the seconds that a call takes; on a GPU the mean of ten."""
    count = STEPS if device is not None and device.type == "cuda" else 1
    start = time.perf_counter()
    for _ in range(count):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / count


def take_turns(timers: Mapping[str, Timer], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Return what each timer says, ``rounds`` times, in turns, after some turns of warm-up."""
    turns = [{name: timer() for name, timer in timers.items()} for _ in range(warmup + rounds)]
    return {name: [turn[name] for turn in turns[warmup:]] for name in timers}


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device | None = None, warmup: int = 2
) -> dict[str, list[float]]:
    """Return seconds per call, ``rounds`` for each, taken in turns."""
    return take_turns({name: partial(time_call, call, device) for name, call in calls.items()}, rounds, warmup)


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
