"""Put a run together from its settings and train it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from mixmo.batches import BatchMaker
from mixmo.callbacks import Averaging, EpochLog, ProgressBar
from mixmo.data import ImageData, evaluation_loader, load_images, train_loader
from mixmo.errors import InputError
from mixmo.files import read_checkpoint
from mixmo.mixing import Mixer
from mixmo.network import MixMo
from mixmo.pixels import PixelMixer
from mixmo.plans import Plan
from mixmo.runs import Run
from mixmo.seeding import seed_for
from mixmo.settings import Settings
from mixmo.training import Training


def fit(plan: Plan, run: Run, resume: bool = False, callbacks: Sequence[Callback] = ()) -> None:
    """Train a network and keep everything in the run's folder.

    All that can be checked is checked before the folder is made and training starts.

    Args:
        plan: What to train (:func:`mixmo.plans.make_plan`).
        run: The run's folder; a new one must be free.
        resume: Go on from the last checkpoint, if there is one.
        callbacks: Lightning callbacks beside mixmo's own.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if a setting does not fit the others, or the run's folder exists.
        TrainingError: if the loss is not finite.
    """
    settings = plan.settings
    if not resume:
        run.check_free()
    images = load_images(settings.data, settings.seed)
    net = build_network(settings, images)
    training = Training(net, build_maker(settings, net, images), settings, len(images.train))
    training.build_optimizer()  # refuses unknown names and options before the folder is made
    loggers = _loggers(settings, run)
    checkpoint = _resumed_checkpoint(run, training) if resume else None
    if not resume:
        run.create(plan.yaml)
    _quiet_lightning()
    progress_bar = plan.trainer["enable_progress_bar"] is not False and sys.stdout.isatty()
    trainer = L.Trainer(
        **(plan.trainer | {"enable_progress_bar": progress_bar}),
        devices=1,
        callbacks=[*_callbacks(training, run, images.validation is not None, progress_bar), *callbacks],
        logger=loggers,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=run.path,
    )
    device = trainer.strategy.root_device
    validation = images.validation and evaluation_loader(images.validation, settings.data, device)
    trainer.fit(
        training,
        train_loader(images.train, settings.data, settings.seed, device),
        validation,
        ckpt_path=checkpoint,
        weights_only=True,
    )


def build_network(settings: Settings, images: ImageData) -> MixMo:
    """Return the network of the settings, its weights drawn from the seed, tried on an image of that size.

    Raises:
        InputError: if the backbone is unknown or cannot take images of that size.
    """
    torch.manual_seed(seed_for(settings.seed, 0, "init"))
    own = settings.model
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
    except (RuntimeError, AssertionError, IndexError) as error:
        raise InputError(
            f"backbone {own.backbone!r} cannot take images of {height}×{width}: {error}. Set --data.image_size to a "
            "size it takes, or --model.options.img_size if it has such an option."
        ) from error
    return net.train()


def build_maker(settings: Settings, net: MixMo, images: ImageData) -> BatchMaker:
    """Return what makes mixtures of distinct images, for a network and a dataset.

    Raises:
        InputError: if a mask cannot share a map of that size among that many members, or the crop is too large.
    """
    own, pixels = settings.mixer, settings.pixels
    mixer = Mixer(own.kind, settings.model.num_members, own.alpha, own.probability, own.draw_per)
    shape = net.encoder_shape(*_crop(settings, images))
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


def _resumed_checkpoint(run: Run, training: Training) -> Path | None:
    """Return the last checkpoint if there is one, after trying it on the network."""
    if not (run.checkpoint_folder / "last.ckpt").is_file():
        return None
    file = run.checkpoint_file("last")
    state = read_checkpoint(file).get("state_dict", {})
    expected = training.state_dict()
    strange = [
        k
        for k in expected.keys() | state.keys()
        if k not in state or k not in expected or state[k].shape != expected[k].shape
    ]
    if strange:
        raise InputError(f"{file} is the checkpoint of another network: {sorted(strange)[0]} differs.")
    return file


def _callbacks(training: Training, run: Run, validated: bool, progress_bar: bool) -> list[Callback]:
    def checkpoint(filename: str, monitor: str | None) -> ModelCheckpoint:
        return ModelCheckpoint(
            dirpath=run.checkpoint_folder.resolve(),
            filename=filename,
            monitor=monitor,
            mode="max",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    callbacks: list[Callback] = [EpochLog(run), checkpoint("last", None)]
    if decay := training.settings.optimizer.average:
        callbacks.append(Averaging(training.net, decay))
    if validated:
        callbacks.append(checkpoint("best", "val_accuracy"))
    if progress_bar:
        callbacks.append(ProgressBar(training))
    return callbacks


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


def _quiet_lightning() -> None:
    """Leave out advice that does not fit: batches come from the device or from workers already chosen."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*number of training batches .* is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*litlogger.*")
    warnings.filterwarnings("ignore", message=".*no `val_dataloader`.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
