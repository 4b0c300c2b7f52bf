"""Put a run together from its settings and train it."""

from __future__ import annotations

import dataclasses
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from mixmo.config.hardware import training_device
from mixmo.config.plan import Plan
from mixmo.config.settings import Settings
from mixmo.data.batches import BatchMaker
from mixmo.data.loading import DistinctBatch, ImageData, evaluation_loader, load_images, train_loader
from mixmo.errors import InputError, reason
from mixmo.masks import CONSTANT
from mixmo.mixing import Mixer
from mixmo.network import MixMo
from mixmo.pixel_mixing import PixelMixer
from mixmo.runs import Run, check_download
from mixmo.seeding import seed_for
from mixmo.training.callbacks import EpochLog, ProgressBar
from mixmo.training.checkpointing import Checkpoints, SealedIO
from mixmo.training.masks import catalogue_with
from mixmo.training.step import STATISTICS_BATCHES, Training

log = logging.getLogger("mixmo")


def fit(plan: Plan, run: Run, resume: bool = False, callbacks: Sequence[Callback] = ()) -> None:
    """Train a network and keep everything in the run's folder.

    All that can be checked is checked before the folder is made and training starts. Global random generators, warning
    filters and log levels are left as they were.

    Args:
        plan: What to train (:func:`mixmo.config.plan.make_plan`).
        run: The run's folder; a new one must be free.
        resume: Go on from the last checkpoint, if there is one.
        callbacks: Lightning callbacks beside mixmo's own; their state is not kept.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if a setting does not fit the others, the run's folder exists or is in use by another process, or
            the data or every checkpoint of a run that goes on has changed or is damaged.
        TrainingError: if the loss is not finite.
    """
    with undisturbed():
        if not resume:
            run.check_free()
        prepared = _prepare(plan, run)
        with run.locked():
            run.remove_partial_files()
            checkpoint = _resumed_checkpoint(run, prepared) if resume else None
            if not resume:
                run.create(plan.yaml, {"resolved": plan.resolved, "data": _about(prepared.images)})
            _train(plan, run, prepared, checkpoint, callbacks)


class Prepared(NamedTuple):
    """A run that is ready to train."""

    images: ImageData
    training: Training
    device: torch.device
    loggers: list[Logger]


def _prepare(plan: Plan, run: Run) -> Prepared:
    """Open the data and build the network and its training; refuse what does not fit."""
    settings = plan.settings
    device = training_device(plan.trainer["accelerator"])
    if device.type == "cpu" and plan.trainer["accelerator"] not in ("auto", "cpu"):
        raise InputError(
            f"trainer.accelerator is {plan.trainer['accelerator']}, but torch sees no such device here; take auto or "
            "cpu."
        )
    check_download(
        settings.model.backbone, settings.model.download, "the recipe", "allow it with --model.download true"
    )
    images = load_images(settings.data, settings.seed)
    net = build_network(settings, images)
    maker = build_maker(settings, net, images)
    images = dataclasses.replace(images, train=images.train.to(device))

    def sample_batches(epoch: int) -> Iterable[DistinctBatch]:
        return train_loader(
            images.train, settings.data, settings.seed, device, epoch, stream="statistics", batches=STATISTICS_BATCHES
        )

    training = Training(net, maker, settings, len(images.train), sample_batches)
    training.build_optimizer()  # refuses unknown names and options before the folder is made
    _tell_of_short_runs(plan, training)
    return Prepared(images, training, device, _loggers(settings, run))


def _tell_of_short_runs(plan: Plan, training: Training) -> None:
    """Log what a run is too short for."""
    settings, epochs = plan.settings, int(plan.trainer["max_epochs"])
    distinct = settings.data.batch_size // settings.data.batch_repetition
    steps = epochs * (training.num_images // distinct)
    if (decay := settings.optimizer.average) and 10 / (1 - decay) > steps:
        log.warning(
            "optimizer.average %g averages over about %d steps, more than a tenth of the run's %d; lower it.",
            decay, round(1 / (1 - decay)), steps,
        )  # fmt: skip
    shaped = settings.model.num_members > 1 and not CONSTANT.issuperset(training.maker.mixer.kinds)
    if settings.mixer.progress == "epochs" and epochs < 12 and shaped:
        log.warning(
            "mixer.progress is epochs, as published for long runs: of %d epochs the last has no shaped masks at all; "
            "take steps.", epochs,
        )  # fmt: skip


def _about(images: ImageData) -> dict[str, Any]:
    """Return what tells whether the data changed."""
    return {"fingerprint": images.fingerprint, "images": len(images.train), "classes": len(images.classes)}


def _train(
    plan: Plan, run: Run, prepared: Prepared, checkpoint: tuple[Path, int] | None, callbacks: Sequence[Callback]
) -> None:
    images, training, device, loggers = prepared
    settings, data = plan.settings, plan.settings.data
    progress_bar = plan.trainer["enable_progress_bar"] and sys.stdout.isatty()
    own: list[Callback] = [EpochLog(run), Checkpoints(run.checkpoint_folder, images.validation is not None)]
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
    validation = images.validation and evaluation_loader(images.validation, data, device)
    file, epoch = checkpoint or (None, 0)
    trainer.fit(
        training,
        train_loader(images.train, data, settings.seed, device, epoch),
        validation,
        ckpt_path=file,
        weights_only=True,
    )


def build_network(settings: Settings, images: ImageData) -> MixMo:
    """Return the network of the settings, its weights drawn from the seed, tried on an image of that size.

    Raises:
        InputError: if the backbone is unknown or cannot take images of that size.
    """
    own = settings.model
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(settings.seed, 0, "init"))
        net = MixMo(
            own.backbone,
            own.num_members,
            num_classes=len(images.classes),
            in_chans=settings.data.channels,
            mix_at=own.mix_at,
            **own.options,
        )
    height, width = _crop(settings, images)
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, net.in_chans, height, width))
    except (RuntimeError, AssertionError, IndexError, ValueError) as error:
        raise InputError(
            f"backbone {own.backbone!r} cannot take images of {height}×{width}: {reason(error)}. Set --data.image_size "
            "to a size it takes, or --model.options.img_size if it has such an option."
        ) from error
    return net.train()


def build_maker(settings: Settings, net: MixMo, images: ImageData) -> BatchMaker:
    """Return what makes mixtures of distinct images, for a network and a dataset.

    Raises:
        InputError: if a mask cannot share a map of that size among that many members, or the crop is too large.
    """
    own, pixels = settings.mixer, settings.pixels
    shape = net.encoder_shape(*_crop(settings, images))
    members = settings.model.num_members
    catalogue = catalogue_with(own.kind, settings.allow_imports, members, shape)
    mixer = Mixer(own.kind, members, own.alpha, own.probability, own.draw_per, catalogue)
    mixer.sample(1, shape, torch.Generator())  # refuses what it cannot do before training starts
    return BatchMaker(
        settings.data,
        mixer,
        None if pixels.kind == "none" else PixelMixer(pixels.kind, pixels.alpha, pixels.probability),
        own.root,
        shape,
        len(images.classes),
    )


def _crop(settings: Settings, images: ImageData) -> tuple[int, int]:
    side = settings.data.crop_size
    height, width = images.size
    room = 2 * settings.data.padding
    if side is not None and (side > height + room or side > width + room):
        raise InputError(
            f"data.crop_size is {side}, larger than images of {height}×{width} with padding {settings.data.padding}."
        )
    return images.size if side is None else (side, side)


def _resumed_checkpoint(run: Run, prepared: Prepared) -> tuple[Path, int] | None:
    """Return the checkpoint to go on from, and how many epochs it has, after trying it on the network and the data."""
    known, now = run.about().get("data"), _about(prepared.images)
    if isinstance(known, dict) and known != now:
        raise InputError(
            f"the training data has changed since {run.path} began ({known.get('images')} images then, {now['images']} "
            "now, or other names, sizes or classes); bring it back, or start a new run."
        )
    if (found := run.resumed_checkpoint()) is None:
        return None
    file, content = found
    state, expected = content["state_dict"], prepared.training.state_dict()
    strange = [
        k
        for k in expected.keys() | state.keys()
        if k not in state or k not in expected or state[k].shape != expected[k].shape
    ]
    if strange:
        raise InputError(f"{file} is the checkpoint of another network: {sorted(strange)[0]} differs.")
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
