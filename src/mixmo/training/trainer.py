"""Lightning's Trainer for a run: its callbacks and loggers, and clear errors."""

from __future__ import annotations

import logging
import math
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy

from mixmo.config.hardware import training_device
from mixmo.config.settings import Settings
from mixmo.data.workers import lost_worker
from mixmo.errors import InputError, reason
from mixmo.launching import is_first, world
from mixmo.runs import RunFolder
from mixmo.training import ranks
from mixmo.training.checkpointing import Checkpoints, SealedIO
from mixmo.training.loaders import Loaders
from mixmo.training.step import Training

PASSED_ON = ("accelerator", "sync_batchnorm", "max_epochs", "limit_train_batches", "gradient_clip_val",
             "deterministic")  # fmt: skip
"""Settings of the section ``trainer`` that are keywords of Lightning's."""

BETWEEN_LINES = 2.0
"""Seconds from a line of the log to the next, or more; the last epoch always has one."""

log = logging.getLogger("mixmo")


def train(
    run: RunFolder,
    training: Training,
    loaders: Loaders,
    loggers: list[Logger],
    checkpoint: Path | None,
    callbacks: Sequence[Callback],
) -> None:
    """Train, from a checkpoint if there is one; explain what only training shows, such as too small a memory."""
    settings, own = training.settings, training.settings.trainer
    shown = sys.stdout.isatty() or "ipykernel" in sys.modules  # in a notebook, too
    bar = own.enable_progress_bar and shown and is_first()
    kept = Checkpoints(run, own, validated=loaders.data.validation is not None)
    trainer = L.Trainer(
        **{key: getattr(own, key) for key in PASSED_ON},
        **_devices(settings),
        enable_progress_bar=bar,
        plugins=[
            SealedIO(),
            build_precision(own.precision or "32-true", own.accelerator),
            *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []),
        ],
        callbacks=[EpochLog(run), kept, *([ProgressBar(training)] if bar else []), *callbacks],
        logger=loggers,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=run.path,
    )
    try:
        trainer.fit(training, datamodule=loaders, ckpt_path=checkpoint, weights_only=True)
    except Exception as error:
        if message := _explain(error, settings, run):
            raise InputError(message) from error
        raise


def build_precision(precision: str, accelerator: str) -> Precision:
    """Return Lightning's plugin of a precision, also of float16 on a CPU, where its Trainer takes bfloat16 instead."""
    if precision == "32-true":
        return Precision()
    return MixedPrecision(precision, training_device(accelerator).type)  # type: ignore[arg-type]


def _explain(error: Exception, settings: Settings, run: RunFolder) -> str:
    """Return what to do about a training error; nothing if it says so itself, or is a bug in mixmo."""
    again = f"`mixmo fit {run.path}` resumes the run."
    if lost := lost_worker(error):
        return f"{lost} {again}"
    if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error):
        parts = settings.trainer.accumulate
        return (
            f"the memory is too small for a batch of {settings.data.batch_size} in {parts} part(s); compute the same "
            f"batch in more parts by --trainer.accumulate {2 * parts}, or lower --data.batch_size."
        )
    if ranks.size() > 1 and re.search("closed by peer|reset by peer|gloo|NCCL", str(error)):
        return f"another process of the run died or stopped with an error, as its own output says; {again}"
    if settings.model.compile and type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return f"the network could not be compiled here: {reason(error)}; set --model.compile false."
    return ""


def _devices(settings: Settings) -> dict[str, Any]:
    """Return Lightning's options for devices."""
    devices, nodes = world(settings.trainer.devices, settings.trainer.num_nodes)
    if devices * nodes == 1:
        return {"devices": 1}
    # Batch norms' statistics are averaged where they are used: a network does not wait for them at each step.
    frozen = bool(settings.optimizer.freeze_epochs)  # parameters that get no gradient for some steps
    strategy = DDPStrategy(broadcast_buffers=False, find_unused_parameters=frozen)
    return {"devices": devices, "num_nodes": nodes, "strategy": strategy}


def build_loggers(settings: Settings, run: RunFolder) -> list[Logger]:
    """Return the Lightning loggers that run in addition to ``metrics.csv``."""
    made: list[Logger] = []
    try:
        for name in settings.loggers:
            if name == "tensorboard":
                made.append(TensorBoardLogger(run.path, name="tensorboard", version=""))
            elif name == "wandb":
                made.append(WandbLogger(name=run.path.name, save_dir=run.path, project="mixmo"))
            else:
                made.append(MLFlowLogger("mixmo", run_name=run.path.name, tracking_uri=f"file:{run.path}/mlflow"))
    except ImportError as error:
        raise InputError(f"logger {name!r} is not installed; `pip install 'mixmo[{name}]'` installs it.") from error
    return made


class EpochLog(Callback):
    """Writes a row of ``metrics.csv`` for each epoch, passes it to the loggers and, not too often, logs a line."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.started = time.perf_counter()
        self.logged = -math.inf

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what was measured."""
        measured = {key: float(value) for key, value in trainer.callback_metrics.items()}
        seconds = time.perf_counter() - self.started
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "seconds": seconds} | measured
        if not trainer.is_global_zero:
            return
        self.run.append_metrics(row)
        for logger in trainer.loggers:
            logger.log_metrics(measured, trainer.global_step)
        now = time.perf_counter()
        if now - self.logged >= BETWEEN_LINES or row["epoch"] == trainer.max_epochs:
            log.info("epoch %d/%s  %s", row["epoch"], trainer.max_epochs, summarise(measured))
            self.logged = now


def summarise(measured: dict[str, float]) -> str:
    """Return an epoch's metrics in one line; training accuracy is that of each member on its part of the mixtures.

    Example:
        >>> members = {f"{split}_member_{i}_accuracy": 0.5 for split in ("train", "val") for i in range(2)}
        >>> summarise({"train_loss": 1.25, "images_per_second": 900.0, "val_accuracy": 0.75} | members)
        'loss 1.25  training accuracy 50.0, 50.0 %  validation 75.0 % (members 50.0, 50.0)  900 images/s'
    """

    def members(split: str) -> list[str]:
        found = [value for key, value in measured.items() if key.startswith(f"{split}_member_")]
        return [f"{100 * value:.1f}" for value in found]

    parts = [f"loss {measured['train_loss']:.4g}"]
    if trained := members("train"):
        parts.append(f"training accuracy {', '.join(trained)} %")
    for key in {"val_accuracy", "val_map"} & measured.keys():
        own = f" (members {', '.join(found)})" if len(found := members("val")) > 1 else ""
        parts.append(f"validation {'mAP ' if key == 'val_map' else ''}{100 * measured[key]:.1f} %{own}")
    return "  ".join([*parts, f"{measured['images_per_second']:.0f} images/s"])


class ProgressBar(RichProgressBar):
    """Lightning's bar, which reads the metrics only when they are new: each read waits for the device."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self._training, self._reports = training, -1
        self._shown: dict[str, Any] = {}

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return the metrics behind the bar."""
        if self._training.reports != self._reports or not trainer.training:
            self._reports, self._shown = self._training.reports, super().get_metrics(trainer, pl_module)
        return self._shown


QUIET = (
    "does not have many workers", "number of training batches .* is smaller than the logging interval", "litlogger",
    "no `val_dataloader`", "LeafSpec", "dataloader is not resumable", "broadcast_buffers", "sync_dist",
    "across ranks is zero", "find_unused_parameters",
)  # fmt: skip
"""Lightning's advice that does not apply: batches come from the device or from workers already chosen."""


@contextmanager
def silence_lightning() -> Iterator[None]:
    """Train without Lightning's usual messages, and leave the process as it was."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels, deterministic = [each.level for each in loggers], torch.are_deterministic_algorithms_enabled()
    for each in loggers:
        each.setLevel(logging.WARNING)
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            for message in QUIET:
                warnings.filterwarnings("ignore", message=f".*{message}.*")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        torch.use_deterministic_algorithms(deterministic)
