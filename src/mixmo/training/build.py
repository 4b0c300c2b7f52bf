"""A run's network and what makes its mixtures, built from its settings and its data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from mixmo.config.settings import Settings
from mixmo.data.batches import BatchMaker
from mixmo.data.module import DataModule
from mixmo.errors import InputError, reason
from mixmo.fusing import fuse
from mixmo.mixing import Mixer
from mixmo.network import MixMo
from mixmo.pixel_mixing import PixelMixer
from mixmo.runs import Run, load_checkpoint
from mixmo.seeding import seed_for
from mixmo.training.masks import catalogue_with

log = logging.getLogger("mixmo")


def build_network(settings: Settings, data: DataModule, drawn: bool = False) -> MixMo:
    """Return the network of the settings, its weights drawn from the seed, tried on an image of that size.

    Args:
        settings: The run's.
        data: Its images, for their classes and size.
        drawn: Draw all weights, also where members start from another run.

    Raises:
        MissingError: if there is no run to start from.
        InputError: if the backbone is unknown or cannot take images of that size, or the start does not fit.
    """
    own = settings.model
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(settings.seed, 0, "init"))
        if own.start is not None and not drawn:
            net = _started(settings, own.start, len(data.classes))
        else:
            net = MixMo(
                own.backbone,
                own.num_members,
                num_classes=len(data.classes),
                in_chans=settings.data.channels,
                mix_at=own.mix_at,
                **own.options,
            )
    height, width = _crop(settings, data)
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, net.in_chans, height, width))
    except (RuntimeError, AssertionError, IndexError, ValueError) as error:
        raise InputError(
            f"backbone {own.backbone!r} cannot take images of {height}×{width}: {reason(error)}. Set --data.image_size "
            "to a size it takes, or --model.options.img_size if it has such an option."
        ) from error
    return net.train()


def _started(settings: Settings, start: str, num_classes: int) -> MixMo:
    """Return a network whose members start from a run's, fused into the plain backbone."""
    run, own = Run(Path(start)), settings.model
    _check_start(settings, start, run.settings())
    plain: Any = fuse(load_checkpoint(run, download=own.download)[0])
    other = plain.num_classes != num_classes
    if other and own.fresh_heads is False:
        raise InputError(
            f"model.start {start} has {plain.num_classes} classes, but the data {num_classes}, so that its head cannot "
            "be kept; leave out model.fresh_heads."
        )
    if fresh := other or bool(own.fresh_heads):
        plain.reset_classifier(num_classes)
    elif own.num_members > 1 and not own.start_noise:
        log.warning("members start as copies of each other and hardly separate; set model.start_noise, to 1 say.")
    return MixMo(plain, own.num_members, trained=True, fresh_heads=fresh, noise=own.start_noise, mix_at=own.mix_at)


def _check_start(settings: Settings, start: str, theirs: Settings) -> None:
    """Refuse a run to start from that does not fit, or that learnt from images held out here."""
    pairs = {
        "model.backbone": (theirs.model.backbone, settings.model.backbone),
        "model.options": (theirs.model.options, settings.model.options),
        **{
            f"data.{key}": (getattr(theirs.data, key), getattr(settings.data, key))
            for key in ("channels", "mean", "std")
        },
    }
    for key, (before, now) in pairs.items():
        if before != now:
            raise InputError(
                f"model.start {start} was trained with {key} {before}, but here it is {now}; set the same."
            )
    own = settings.data
    holds_out = own.validation > 0 or (own.name == "digits" and own.images_per_class is not None)
    if not holds_out or theirs.data.name != own.name:
        return
    splits = [
        (each.data.validation, each.data.images_per_class, each.data.seed_of_split(each.seed))
        for each in (theirs, settings)
    ]
    if splits[0] != splits[1]:
        raise InputError(
            f"model.start {start} has learnt from images that are held out here: it was trained with data.validation "
            "{}, data.images_per_class {} and a split by seed {}, which are {}, {} and {} here; set the same "
            "(--data.split_seed).".format(*splits[0], *splits[1])
        )


def build_maker(settings: Settings, net: MixMo, data: DataModule) -> BatchMaker:
    """Return what makes mixtures of distinct images, for a network and a dataset.

    Raises:
        InputError: if a mask cannot share a map of that size among that many members, or the crop is too large.
    """
    own, pixels = settings.mixer, settings.pixels
    shape = net.encoder_shape(*_crop(settings, data))
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
        len(data.classes),
    )


def _crop(settings: Settings, data: DataModule) -> tuple[int, int]:
    side = settings.data.crop_size
    height, width = data.size
    room = 2 * settings.data.padding
    if side is not None and (side > height + room or side > width + room):
        raise InputError(
            f"data.crop_size is {side}, larger than images of {height}×{width} with padding {settings.data.padding}."
        )
    return data.size if side is None else (side, side)
