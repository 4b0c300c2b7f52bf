"""Builds a run's network and mixer from settings and data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixmo.batch_mixing import BatchMixer
from mixmo.config.settings import Settings
from mixmo.data.module import DataModule
from mixmo.errors import InputError, reason
from mixmo.header import Header, Preparation, height_and_width
from mixmo.network import MixMo
from mixmo.seeding import DrawingFrom, generator_for
from mixmo.training.imbalance import find_class_weights
from mixmo.training.initial_weights import init_from_pretrained
from mixmo.training.user_code import find_masks, find_objective


def build_network(settings: Settings, data: DataModule, drawn: bool = False, module: nn.Module | None = None) -> MixMo:
    """Return the network of the settings, its weights drawn from the seed, tried on a mixture of that size.

    ``drawn`` draws all weights, also where members start from another run; ``module`` is the backbone, where a program
    gives one in place of a name, and a MixMo is trained itself.
    """
    own = settings.model
    with DrawingFrom(generator_for(settings.seed, 0, "init")):
        if isinstance(module, MixMo):
            net = module
        elif module is not None:
            net = MixMo(module, own.num_members, len(data.classes), mix_at=own.mix_at)
        elif own.pretrained and not drawn:
            net = init_from_pretrained(settings, len(data.classes))
        else:
            net = MixMo(
                own.backbone,
                own.num_members,
                num_classes=len(data.classes),
                in_chans=settings.data.channels,
                mix_at=own.mix_at,
                **own.options,
            )
    if net.num_classes != len(data.classes) or net.in_chans != settings.data.channels:
        raise InputError(
            f"the network takes {net.in_chans} channels and tells {net.num_classes} classes apart, but the images have "
            f"{settings.data.channels} and {len(data.classes)}; build it for these."
        )
    height, width = _crop(settings, data)
    try:
        with torch.no_grad():
            outputs = net.eval()(torch.zeros(1, net.num_members, net.in_chans, height, width))
    except InputError:
        raise
    except (RuntimeError, AssertionError, IndexError, ValueError) as error:
        raise InputError(
            f"backbone {own.backbone!r} cannot take images of {height}×{width}: {reason(error)}. Set --data.image_size "
            "to a size it takes, or --model.options.img_size if it has such an option."
        ) from error
    _refuse_probabilities(outputs)
    return net.train()


def _refuse_probabilities(outputs: Tensor) -> None:
    """Refuse a network that ends in a softmax of its own, or the logarithm of one: the loss takes logits."""
    for name, sums in {"softmax": outputs.sum((1, 2)), "log_softmax": outputs.exp().sum((1, 2))}.items():
        if outputs.shape[1:].numel() > 1 and bool(((sums - 1).abs() < 1e-4).all()):
            raise InputError(
                f"the network ends in a {name} of its own: its outputs are not logits, which the loss makes "
                "probabilities of; leave it out of the module."
            )


def describe(settings: Settings, data: DataModule) -> Header:
    """Return the header of a run's checkpoints."""
    own, (height, width) = settings.model, data.size
    return Header(
        classes=list(data.classes),
        size=(height, width),
        data=Preparation.of(settings.data),
        backbone=own.backbone,
        options=own.options,
        num_members=own.num_members,
        mix_at=own.mix_at,
        multi_label=settings.data.multi_label,
    )


def build_mixer(settings: Settings, net: MixMo, data: DataModule) -> BatchMixer:
    """Return the mixer of a network, tried on images of the dataset's size."""
    allowed, images, members = settings.allow_imports, settings.data, net.num_members
    shape = net.encoder_shape(*_crop(settings, data))
    own, soft = settings.mixer, settings.pixels.kind != "none" or images.multi_label
    mixer = BatchMixer(
        net,
        find_masks(own.kinds, allowed, members, shape),
        alpha=own.alpha,
        probability=own.probability,
        root=own.root,
        draw_per=own.draw_per,
        batch_repetition=images.batch_repetition,
        input_repetition=images.input_repetitions,
        pixels=settings.pixels,
        label_smoothing=settings.objective.label_smoothing,
        class_weights=find_class_weights(settings, data),
        multi_label=images.multi_label,
        loss=find_objective(settings.objective.name, allowed, members, net.num_classes, soft),
    )
    mixer.mixer.sample(1, shape, torch.Generator())  # refuses what it cannot do before training starts
    return mixer


def _crop(settings: Settings, data: DataModule) -> tuple[int, int]:
    crop, padding, (height, width) = settings.data.crop_size, settings.data.padding, data.size
    rows, columns = data.size if crop is None else height_and_width(crop)
    if rows > height + 2 * padding or columns > width + 2 * padding:
        raise InputError(f"data.crop_size is {crop}, larger than images of {height}×{width} with padding {padding}.")
    if settings.data.padding_mode == "reflect" and padding >= min(height, width):
        raise InputError(
            f"data.padding is {padding}; images of {height}×{width} can be reflected by less than their smaller side. "
            "Lower it, or set data.padding_mode to zeros."
        )
    return rows, columns
