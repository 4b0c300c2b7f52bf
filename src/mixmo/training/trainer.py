"""Lightning's Trainer for a run, with its callbacks, loggers and error messages."""

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
from mixmo.data.messages import log_level
from mixmo.data.workers import explain_lost_worker
from mixmo.errors import InputError, reason
from mixmo.launching import count_devices, is_first
from mixmo.runs import RunFolder
from mixmo.training import ranks
from mixmo.training.checkpointing import Checkpoints, DigestCheckpointIO
from mixmo.training.loaders import Loaders
from mixmo.training.step import Training

TRAINER_OPTIONS = ("accelerator", "sync_batchnorm", "max_epochs", "limit_train_batches", "gradient_clip_val",
                   "deterministic")  # fmt: skip
"""Settings of the section ``trainer`` passed to Lightning's Trainer."""
LOG_INTERVAL = 2.0
"""Least seconds between two lines of the log, apart from the last epoch's."""

log = logging.getLogger("mixmo")


def train(
    run: RunFolder,
    training: Training,
    loaders: Loaders,
    loggers: list[Logger],
    checkpoint: Path | None,
    callbacks: Sequence[Callback],
) -> None:
    """Run Lightning's Trainer; turn memory, worker and compile failures into InputErrors."""
    settings, options = training.settings, training.settings.trainer
    interactive = sys.stdout.isatty() or "ipykernel" in sys.modules  # a notebook
    bar = options.enable_progress_bar and interactive and is_first()
    checkpoints = Checkpoints(run, options, validated=loaders.data.validation is not None)
    trainer = L.Trainer(
        **{key: getattr(options, key) for key in TRAINER_OPTIONS},
        **_devices(settings),
        enable_progress_bar=bar,
        plugins=[
            DigestCheckpointIO(),
            build_precision(options.precision or "32-true", options.accelerator),
            *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []),
        ],
        callbacks=[EpochLog(run), checkpoints, *([ProgressBar(training)] if bar else []), *callbacks],
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
    """Return Lightning's precision plugin; on a CPU its Trainer would replace float16 by bfloat16."""
    if precision == "32-true":
        return Precision()
    return MixedPrecision(precision, training_device(accelerator).type)  # type: ignore[arg-type]


def _explain(error: Exception, settings: Settings, run: RunFolder) -> str:
    """Return a message for an error whose cause is known, else an empty string."""
    resume = f"{run.how_to_resume}."
    if lost := explain_lost_worker(error):
        return f"{lost} {resume}"
    if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error):
        parts = settings.trainer.accumulate
        return (
            f"out of memory with a batch of {settings.data.batch_size} in {parts} part(s); compute it in more parts "
            f"with trainer.accumulate: {2 * parts}, or lower data.batch_size."
        )
    if "not used in producing the loss" in str(error):  # of DDP, in the words of Lightning
        return (
            "the loss depends on only some of the network's weights, but several devices average the gradients of all; "
            "remove the unused layers, set requires_grad of their weights to False, or train on one device."
        )
    if ranks.size() > 1 and re.search("closed by peer|reset by peer|gloo|NCCL", str(error)):
        return f"another process of the run died or stopped with an error, as its own output says; {resume}"
    if settings.model.compile and type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return f"the network could not be compiled here: {reason(error)}; set model.compile to false."
    return ""


def _devices(settings: Settings) -> dict[str, Any]:
    """Return the Trainer's options for devices."""
    devices, nodes = count_devices(settings.trainer.devices, settings.trainer.num_nodes)
    if devices * nodes == 1:
        return {"devices": 1}
    # Batch-norm statistics are averaged before validating and saving (`Training.sync_before_eval`), not at each step.
    frozen = bool(settings.optimizer.freeze_epochs)  # some parameters get no gradient at first
    strategy = DDPStrategy(broadcast_buffers=False, find_unused_parameters=frozen)
    return {"devices": devices, "num_nodes": nodes, "strategy": strategy}


def build_loggers(settings: Settings, run: RunFolder) -> list[Logger]:
    """Return the Lightning loggers of ``settings.loggers``."""
    loggers: list[Logger] = []
    try:
        for name in settings.loggers:
            if name == "tensorboard":
                loggers.append(TensorBoardLogger(run.path, name="tensorboard", version=""))
            elif name == "wandb":
                loggers.append(WandbLogger(name=run.path.name, save_dir=run.path, project="mixmo"))
            else:
                loggers.append(MLFlowLogger("mixmo", run_name=run.path.name, tracking_uri=f"file:{run.path}/mlflow"))
    except ImportError as error:
        raise InputError(f"logger {name!r} is not installed; `pip install 'mixmo[{name}]'` installs it.") from error
    return loggers


class EpochLog(Callback):
    """After each epoch, adds a row to ``metrics.csv``, calls the loggers and logs a line, at most every two seconds."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.started = time.perf_counter()
        self.logged = -math.inf

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the timer."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch's metrics."""
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        seconds = time.perf_counter() - self.started
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "seconds": seconds} | metrics
        if not trainer.is_global_zero:
            return
        self.run.append_metrics(row)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, trainer.global_step)
        now = time.perf_counter()
        if now - self.logged >= LOG_INTERVAL or row["epoch"] == trainer.max_epochs:
            log.info("epoch %d/%s  %s", row["epoch"], trainer.max_epochs, summarise(metrics))
            self.logged = now


def summarise(metrics: dict[str, float]) -> str:
    """Format an epoch's metrics as one line; training accuracies are those of the members on mixtures.

    Example:
        >>> members = {f"{split}_member_{i}_accuracy": 0.5 for split in ("train", "val") for i in range(2)}
        >>> summarise({"train_loss": 1.25, "images_per_second": 900.0, "val_accuracy": 0.75} | members)
        'loss 1.25  training accuracy 50.0, 50.0 %  validation 75.0 % (members 50.0, 50.0)  900 images/s'
    """

    def members(split: str) -> list[str]:
        return [f"{100 * value:.1f}" for key, value in metrics.items() if key.startswith(f"{split}_member_")]

    parts = [f"loss {metrics['train_loss']:.4g}"]
    if trained := members("train"):
        parts.append(f"training accuracy {', '.join(trained)} %")
    for key in {"val_accuracy", "val_map"} & metrics.keys():
        each = f" (members {', '.join(scores)})" if len(scores := members("val")) > 1 else ""
        parts.append(f"validation {'mAP ' if key == 'val_map' else ''}{100 * metrics[key]:.1f} %{each}")
    return "  ".join([*parts, f"{metrics['images_per_second']:.0f} images/s"])


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, which reads metrics only when they are new: reading waits for the device."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self._training, self._reports = training, -1
        self._shown: dict[str, Any] = {}

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return the metrics to show."""
        if self._training.reports != self._reports or not trainer.training:
            self._reports, self._shown = self._training.reports, super().get_metrics(trainer, pl_module)
        return self._shown


IGNORED_WARNINGS = (
    "does not have many workers", "number of training batches .* is smaller than the logging interval", "litlogger",
    "no `val_dataloader`", "LeafSpec", "dataloader is not resumable", "broadcast_buffers", "sync_dist",
    "across ranks is zero", "find_unused_parameters",
)  # fmt: skip
"""Lightning's warnings that do not apply here."""


@contextmanager
def silence_lightning() -> Iterator[None]:
    """Suppress Lightning's messages within the block; restore random generators, warning filters and log levels."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    levels = log_level(logging.WARNING, "lightning.pytorch", "lightning.fabric")
    try:
        with levels, torch.random.fork_rng(range(torch.cuda.device_count())), warnings.catch_warnings():
            for message in IGNORED_WARNINGS:
                warnings.filterwarnings("ignore", message=f".*{message}.*")
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
