"""Put a run together from its settings and train it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from mixmo.checkpoints import LAST, duplicate
from mixmo.config.hardware import training_device
from mixmo.config.plan import Plan
from mixmo.config.settings import Settings
from mixmo.config.starting import PRETRAINED
from mixmo.data.module import DataModule
from mixmo.data.sets import DistinctBatch, ImageSet, evaluation_loader, train_loader
from mixmo.errors import InputError, reason
from mixmo.loading import check_download
from mixmo.masks import CONSTANT
from mixmo.runs import Run, versions
from mixmo.training.build import build_maker, build_network
from mixmo.training.callbacks import EpochLog, ProgressBar
from mixmo.training.checkpointing import Checkpoints, SealedIO
from mixmo.training.optimizers import build_optimizer
from mixmo.training.resuming import check_resumable
from mixmo.training.step import STATISTICS_BATCHES, Training

FETCHING = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Options of timm's models that read weights from elsewhere."""

log = logging.getLogger("mixmo")


def fit(plan: Plan, run: Run, resume: bool = False, callbacks: Sequence[Callback] = ()) -> None:
    """Train a network and keep everything in the run's folder.

    All that can be checked is checked before the folder is made and training starts. Global random generators, warning
    filters and log levels are left as they were.

    Args:
        plan: What to train (:func:`mixmo.config.plan.make_plan`).
        run: The run's folder; a new one must be free.
        resume: Resume from the last checkpoint, if there is one.
        callbacks: Lightning callbacks beside mixmo's own; their state is not kept.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if a setting does not fit the others, the run's folder exists or is in use by another process, or
            the data or every checkpoint of a run that is resumed has changed or is damaged.
        TrainingError: if the loss is not finite.
    """
    with undisturbed():
        if not resume:
            run.check_free()
        prepared = _prepare(plan, run, drawn=resume and run.has_checkpoint())
        with run.locked():
            run.remove_partial_files()
            checkpoint = _resumed_checkpoint(run, prepared) if resume else None
            if not resume:
                about = {
                    "resolved": plan.resolved,
                    "data": _about(prepared.data),
                    "settings": yaml.safe_load(plan.yaml),
                }
                if prepared.data.draws("train"):
                    run.write_split(prepared.data.split_rows())
                run.create(plan.yaml, about)
            _train(plan, run, prepared, checkpoint, callbacks)


class Prepared(NamedTuple):
    """A run that is ready to train."""

    data: DataModule
    images: ImageSet
    training: Training
    device: torch.device
    loggers: list[Logger]


def _prepare(plan: Plan, run: Run, drawn: bool) -> Prepared:
    """Open the data and build the network and its training; refuse what does not fit.

    Args:
        plan: What to train.
        run: Where.
        drawn: Whether a checkpoint's weights will take the place of those the members start from.
    """
    settings = plan.settings
    device = training_device(plan.trainer["accelerator"])
    if device.type == "cpu" and plan.trainer["accelerator"] not in ("auto", "cpu"):
        raise InputError(
            f"trainer.accelerator is {plan.trainer['accelerator']}, but torch sees no such device here; take auto or "
            "cpu."
        )
    _check_fetching(settings)
    data = DataModule(settings.data, settings.seed, check=True).require()
    net = build_network(settings, data, drawn)
    images = data.train.to(device)

    def sample_batches(epoch: int) -> Iterable[DistinctBatch]:
        return train_loader(
            images, settings.data, settings.seed, device, epoch, stream="statistics", batches=STATISTICS_BATCHES
        )

    inference = {"classes": data.classes, "size": list(data.size), "versions": versions()}
    maker = build_maker(settings, net, data)
    training = Training(net, maker, settings, len(images), sample_batches, inference=inference)
    _try_optimizer(settings)
    _tell_of_short_runs(plan, training)
    return Prepared(data, images, training, device, _loggers(settings, run))


def _check_fetching(settings: Settings) -> None:
    """Refuse a backbone or an option that asks the network, or reads another file, unless that is allowed."""
    model = settings.model
    check_download(model.backbone, model.download, "the recipe", "allow it with --model.download true")
    if model.start == PRETRAINED and not model.download:
        raise InputError(
            f"model.start is {PRETRAINED}, so that timm may fetch the weights of {model.backbone!r} from the network; "
            "allow it with --model.download true, or start from a file."
        )
    if not model.download and (fetching := [key for key in FETCHING if model.options.get(key)]):
        raise InputError(
            f"model.options.{fetching[0]} can make timm ask the network or read another file; allow it with "
            "--model.download true."
        )


def _try_optimizer(settings: Settings) -> None:
    """Refuse what an optimiser takes when it is built but cannot step with."""
    own, layer = settings.optimizer, torch.nn.Linear(1, 1)
    optimizer = build_optimizer(layer, own.name, 0.1, own.weight_decay, own.momentum, own.decay_all, **own.options)
    try:
        layer(torch.ones(1, 1)).sum().backward()
        optimizer.step()
    except Exception as error:  # whatever the optimiser makes of its options
        raise InputError(f"optimizer {own.name!r} cannot step with {own.options}: {reason(error)}.") from error


def _tell_of_short_runs(plan: Plan, training: Training) -> None:
    """Log what a run is too short for."""
    settings, epochs = plan.settings, int(plan.trainer["max_epochs"])
    steps = epochs * _steps_per_epoch(plan, training.num_images)
    if (decay := settings.optimizer.ema_decay) and 10 / (1 - decay) > steps:
        log.warning(
            "optimizer.ema_decay %g averages over about %d steps, more than a tenth of the run's %d; lower it.",
            decay, round(1 / (1 - decay)), steps,
        )  # fmt: skip
    shaped = settings.model.num_members > 1 and not CONSTANT.issuperset(training.maker.mixer.kinds)
    if settings.mixer.progress == "epochs" and epochs < 12 and shaped:
        log.warning(
            "mixer.progress is epochs, as published for long runs: of %d epochs the last has no shaped masks at all; "
            "take steps.", epochs,
        )  # fmt: skip


def _steps_per_epoch(plan: Plan, num_images: int) -> int:
    """Return the steps of an epoch; refuse a share of batches that leaves none."""
    data, limit = plan.settings.data, plan.trainer["limit_train_batches"]
    steps = num_images // (data.batch_size // data.batch_repetition)
    if isinstance(limit, float):
        steps = int(steps * limit)
    elif limit is not None:
        steps = min(steps, limit)
    if steps < 1:
        raise InputError(f"trainer.limit_train_batches is {limit}, which leaves no batch of an epoch; raise it.")
    return steps


def _about(data: DataModule) -> dict[str, Any]:
    """Return what tells whether the data changed."""
    fingerprint = data.fingerprint("train", times=False)
    return {"fingerprint": fingerprint, "images": len(data.train), "classes": len(data.classes)}


def _train(
    plan: Plan, run: Run, prepared: Prepared, checkpoint: tuple[Path, int] | None, callbacks: Sequence[Callback]
) -> None:
    data, images, training, device, loggers = prepared
    settings = plan.settings
    progress_bar = plan.trainer["enable_progress_bar"] and sys.stdout.isatty()
    own: list[Callback] = [EpochLog(run), Checkpoints(run, data.validation is not None)]
    trainer = L.Trainer(
        **(plan.trainer | {"enable_progress_bar": progress_bar}),
        devices=1,
        plugins=[SealedIO()],
        callbacks=[*own, *([ProgressBar(training)] if progress_bar else []), *callbacks],
        logger=loggers,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=run.path,
    )
    validation = data.validation and evaluation_loader(data.validation, settings.data, device)
    file, epoch = checkpoint or (None, 0)
    try:
        trainer.fit(
            training,
            train_loader(images, settings.data, settings.seed, device, epoch),
            validation,
            ckpt_path=file,
            weights_only=True,
        )
    except Exception as error:
        if settings.model.compile and type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise InputError(
                f"the network could not be compiled here: {reason(error)}; set --model.compile false."
            ) from error
        raise


def _resumed_checkpoint(run: Run, prepared: Prepared) -> tuple[Path, int] | None:
    """Return the checkpoint to resume from, and how many epochs it has, if it fits the network and the data."""
    run.check_unchanged()
    known, now = run.about().get("data"), _about(prepared.data)
    if isinstance(known, dict) and known != now:
        raise InputError(
            f"the training data has changed since {run.path} began ({known.get('images')} images then, {now['images']} "
            "now, or other names, sizes or classes); bring it back, or start a new run."
        )
    run.read_metrics()  # a damaged file is said before an epoch is spent
    if (found := run.resumed_checkpoint()) is None:
        return None
    file, content = found
    check_resumable(file, content, prepared.training)
    if file.name != LAST:
        duplicate(file, file.with_name(LAST))
    return file, content["epoch"] + 1


def _loggers(settings: Settings, run: Run) -> list[Logger]:
    """Return Lightning's loggers beside ``metrics.csv``."""
    made: list[Logger] = []
    try:
        for name in settings.loggers:
            if name == "tensorboard":
                made.append(TensorBoardLogger(run.path, name="tensorboard", version=""))
            elif name == "wandb":
                made.append(WandbLogger(name=run.path.name, save_dir=run.path, project="mixmo"))
            else:
                made.append(MLFlowLogger("mixmo", run_name=run.path.name, tracking_uri=f"file:{run.path}/mlflow"))
    except (ImportError, ModuleNotFoundError) as error:
        raise InputError(f"logger {name!r} is not installed; `pip install 'mixmo[{name}]'` installs it.") from error
    return made


QUIET = (
    "does not have many workers", "number of training batches .* is smaller than the logging interval", "litlogger",
    "no `val_dataloader`", "LeafSpec",
)  # fmt: skip
"""Advice of Lightning's that does not fit: batches come from the device or from workers already chosen."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Train without what Lightning says of every run, and leave the process as it was."""
    logger, deterministic = logging.getLogger("lightning.pytorch"), torch.are_deterministic_algorithms_enabled()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            for message in QUIET:
                warnings.filterwarnings("ignore", message=f".*{message}.*")
            yield
    finally:
        logger.setLevel(level)
        torch.use_deterministic_algorithms(deterministic)
