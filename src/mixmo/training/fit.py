"""Train a run from its settings."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import nn

from mixmo.config.data_settings import DataSettings
from mixmo.config.hardware import has_units, training_device
from mixmo.config.plan import Plan
from mixmo.config.settings import ModelSettings, Settings
from mixmo.data.duplicates import warn_of_duplicates
from mixmo.data.module import DataModule
from mixmo.errors import InputError, explain_errors
from mixmo.escaping import timm_scheme
from mixmo.launching import count_devices, is_first
from mixmo.loading import check_download
from mixmo.masks import CONSTANT
from mixmo.network import MixMo
from mixmo.runs import RunFolder
from mixmo.training.build import build_network
from mixmo.training.imbalance import warn_of_imbalance
from mixmo.training.loaders import Loaders
from mixmo.training.optimizers import build_optimizer
from mixmo.training.resuming import check_unchanged, describe_data, find_conditions, open_checkpoint
from mixmo.training.step import Training
from mixmo.training.trainer import build_loggers, silence_lightning, train

DOWNLOAD_OPTIONS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Options of timm's models that read or download weights."""

log = logging.getLogger("mixmo")


def fit(
    plan: Plan,
    run: RunFolder,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    accept_changes: bool = False,
    data: DataModule | None = None,
    module: nn.Module | None = None,
) -> None:
    """Train a network and write the run's folder, which must be free unless the run is resumed.

    Input is checked before the folder is made. Global random generators, warning filters and log levels are restored.

    Args:
        plan: What to train (:func:`mixmo.config.plan.make_plan`).
        run: The run's folder.
        resume: Resume from the last checkpoint, if there is one.
        callbacks: Lightning callbacks in addition to mixmo's own; their state is not saved.
        accept_changes: Resume with settings that have changed since the run began.
        data: The images, in place of those that the plan names.
        module: The backbone, in place of the one that the plan names.
    """
    first = is_first()
    with silence_lightning():
        if first and not resume:
            run.check_free()
        if resume and not accept_changes:
            check_unchanged(run, plan)
        training, loaders, loggers = _prepare(plan, run, resume and run.has_checkpoint(), data, module)
        conditions = find_conditions(plan.settings, training.net, loaders.data)
        if resume and not accept_changes:
            check_unchanged(run, plan, conditions)
        with run.lock() if first else nullcontext():
            if first:
                run.remove_partial_files()
            checkpoint = open_checkpoint(plan, run, training, loaders, conditions) if resume else None
            if first and not resume:
                if loaders.data.is_drawn("train"):
                    run.write_split(loaders.data.split_rows())
                about = {"resolved": plan.resolved, "conditions": conditions, "data": describe_data(loaders.data)}
                run.create(plan.yaml, about | {"settings": yaml.safe_load(plan.yaml)})
            train(run, training, loaders, loggers, checkpoint, callbacks)


def _prepare(
    plan: Plan, run: RunFolder, has_checkpoint: bool, data: DataModule | None, module: nn.Module | None
) -> tuple[Training, Loaders, list[Logger]]:
    """Open the data and build the network, its training and loggers; raise if any settings do not fit.

    ``has_checkpoint`` is whether a checkpoint's weights will replace the initial ones.
    """
    settings, trainer = plan.settings, plan.settings.trainer
    device = training_device(trainer.accelerator)
    if device.type == "cpu" and trainer.accelerator not in ("auto", "cpu"):
        raise InputError(
            f"trainer.accelerator is {trainer.accelerator}, but torch sees no such device; use auto or cpu."
        )
    if module is None:
        _check_downloads(settings, has_checkpoint)
    else:
        _check_model_settings(settings.model, module)
    _check_divisible(settings, device)
    data = (data or DataModule(settings.data, settings.seed, check=True)).require()
    if trainer.patience and data.validation is None:
        raise InputError(
            f"trainer.patience is {trainer.patience}, but there are no validation images to judge by; set "
            "data.validation to a share, or give a validation set."
        )
    if (frozen := settings.optimizer.freeze_epochs) and not settings.model.pretrained and module is None:
        raise InputError(
            f"optimizer.freeze_epochs is {frozen}, but weights are not pretrained; set model.pretrained, or "
            "freeze_epochs to 0."
        )
    net = build_network(settings, data, ignore_pretrained=has_checkpoint, module=module)
    loaders = Loaders(data, net.num_members)
    loaders.check_shared_memory(*count_devices(trainer.devices, trainer.num_nodes))
    training = Training(settings, net, loaders)
    _try_optimizer(settings)
    _warn_of_settings(plan, training)
    if not has_units(device, precision := plan.resolved["trainer"]["precision"]):
        log.warning(
            "trainer.precision is %s, but torch knows of no units for it on this %s: 32-true may be ten times as fast; "
            "leave the setting out to use what suits the machine.", precision, device.type,
        )  # fmt: skip
    if is_first():
        warn_of_imbalance(settings, data)
        warn_of_duplicates(data)
    return training, loaders, build_loggers(settings, run)


def _check_divisible(settings: Settings, device: torch.device) -> None:
    """Raise if devices and parts cannot share a batch evenly, or batch norms are to be synchronised on a CPU."""
    trainer, data = settings.trainer, settings.data
    devices, nodes = count_devices(trainer.devices, trainer.num_nodes)
    count, parts = devices * nodes, devices * nodes * trainer.accumulate
    if data.batch_size % parts:
        raise InputError(
            f"data.batch_size is {data.batch_size}, which {count} device(s) in {trainer.accumulate} part(s) each "
            f"cannot share evenly; use a multiple of {parts}."
        )
    if (data.batch_size // data.batch_repetition) % count and data.in_memory is not True:
        raise InputError(
            f"a batch has {data.batch_size // data.batch_repetition} distinct images (data.batch_size / "
            f"data.batch_repetition), which {count} devices cannot decode evenly; use a multiple of {count}."
        )
    if trainer.sync_batchnorm and device.type == "cpu":
        raise InputError("trainer.sync_batchnorm is true, but torch's SyncBatchNorm needs GPUs; set it to false.")


def _check_downloads(settings: Settings, has_checkpoint: bool) -> None:
    """Raise for a backbone or option that downloads, or reads another file, unless ``model.download`` allows it."""
    model = settings.model
    check_download(model.backbone, model.download, "the recipe", "allow it with model.download: true")
    is_local = timm_scheme(model.backbone) == "local-dir"
    if model.pretrained is True and not is_local and not model.download and not has_checkpoint:
        raise InputError(
            f"model.pretrained is true, so timm may download the weights of {model.backbone!r}; "
            "allow it with model.download: true, or start from a file."
        )
    if not model.download and (options := [key for key in DOWNLOAD_OPTIONS if model.options.get(key)]):
        raise InputError(
            f"model.options.{options[0]} can make timm download or read another file; allow it with "
            "model.download: true."
        )


def _check_model_settings(model: ModelSettings, module: nn.Module) -> None:
    """Refuse settings that have no effect on a model passed from Python."""
    if model.options:
        raise InputError(f"model.options is {model.options}, but the model is a module; build it with these options.")
    if model.pretrained and isinstance(module, MixMo):
        raise InputError(
            f"model.pretrained is {model.pretrained!r}, but the model is a MixMo, which has its weights; set "
            "pretrained=False, and build it with MixMo(module, trained=True, noise=…) if the module is trained."
        )
    if isinstance(model.pretrained, str):
        raise InputError(
            f"model.pretrained is {model.pretrained!r}, but the model is a module; load the weights into it, and set "
            "pretrained=True."
        )


def _try_optimizer(settings: Settings) -> None:
    """Take one step, to find options that an optimiser accepts only when it is built."""
    own, layer = settings.optimizer, nn.Linear(1, 1)
    optimizer = build_optimizer(layer, replace(own, layer_decay=None), 0.1)
    with explain_errors(f"optimizer {own.name!r} cannot step with {own.options}"):
        layer(torch.ones(1, 1)).sum().backward()
        optimizer.step()


def _warn_of_settings(plan: Plan, training: Training) -> None:
    """Warn of settings that have no effect, or for which the run is too short."""
    settings, epochs = plan.settings, plan.epochs
    images, defaults = settings.data, DataSettings()
    photo = images.scale != defaults.scale or images.color_jitter not in (0, defaults.color_jitter)
    if photo and images.augmentation != "photo":
        log.warning("data.scale and data.color_jitter have no effect without data.augmentation photo.")
    steps = epochs * _steps_per_epoch(plan, training.num_images)
    if (decay := settings.optimizer.ema_decay) and 10 / (1 - decay) > steps:
        largest = math.floor(100 * (1 - 10 / steps)) / 100
        log.warning(
            "optimizer.ema_decay %g averages over about %d steps, more than a tenth of the run's %d; %s.", decay,
            round(1 / (1 - decay)), steps, f"lower it to {largest:g} or less" if largest > 0 else "leave it out",
        )  # fmt: skip
    if training.warmup >= steps:
        log.warning(
            "the warm-up takes %d steps and the run has %d, so the learning rate rises until the end; lower "
            "schedule.warmup_epochs, or train longer.", training.warmup, steps,
        )  # fmt: skip
    if (frozen := settings.optimizer.freeze_epochs) != "all" and frozen >= epochs:
        log.warning(
            "optimizer.freeze_epochs is %g, and trainer.max_epochs %d: only encoders and heads are trained; lower it, "
            "or set it to all.", frozen, epochs,
        )  # fmt: skip
    shaped = settings.model.num_members > 1 and not CONSTANT.issuperset(training.mixer.mixer.kinds)
    if settings.mixer.progress == "epochs" and epochs < 12 and shaped:
        log.warning(
            "mixer.progress is epochs, as published for long runs: the last of %d epochs has no shaped masks; use "
            "steps.", epochs,
        )  # fmt: skip


def _steps_per_epoch(plan: Plan, num_images: int) -> int:
    """Return the steps of an epoch; raise if ``limit_train_batches`` leaves none."""
    data, limit = plan.settings.data, plan.settings.trainer.limit_train_batches
    steps = num_images // (data.batch_size // data.batch_repetition)
    if isinstance(limit, float):
        steps = int(steps * limit)
    elif limit is not None:
        steps = min(steps, limit)
    if steps < 1:
        raise InputError(f"trainer.limit_train_batches is {limit}, which leaves no batch in an epoch; raise it.")
    return steps
