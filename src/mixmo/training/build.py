"""Build a run's network and mixer from its settings and data."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixmo.batch_mixing import BatchMixer
from mixmo.config.settings import Settings
from mixmo.data.module import DataModule
from mixmo.errors import InputError, explain_errors, reason
from mixmo.header import Header, Preparation, height_and_width
from mixmo.models.copying import copy_module
from mixmo.network import MixMo
from mixmo.seeding import UseGenerator, generator_for
from mixmo.training.imbalance import find_class_weights
from mixmo.training.initial_weights import init_from_pretrained
from mixmo.training.user_code import find_masks, find_objective


def build_network(
    settings: Settings, data: DataModule, ignore_pretrained: bool = False, module: nn.Module | None = None
) -> MixMo:
    """Build the network, initialised from the seed, and run it once on an empty mixture.

    Args:
        settings: The run's settings.
        data: Its images.
        ignore_pretrained: Draw all weights, even if ``model.pretrained`` is set.
        module: The backbone, in place of ``model.backbone``, or a MixMo; a copy is trained.
    """
    model, num_classes, channels = settings.model, len(data.classes), settings.data.channels
    with UseGenerator(generator_for(settings.seed, 0, "init")):
        if isinstance(module, MixMo):
            with explain_errors("the model cannot be copied", RuntimeError):
                net = copy_module(module)
        elif model.pretrained and not ignore_pretrained:
            net = init_from_pretrained(settings, data.classes, module)
        elif module is not None:
            net = MixMo(module, model.num_members, num_classes, mix_at=model.mix_at)
        else:
            net = MixMo(
                model.backbone, model.num_members, num_classes, in_chans=channels, mix_at=model.mix_at, **model.options
            )
    if (net.in_chans, net.num_classes) != (channels, num_classes):
        raise InputError(
            f"the network takes {net.in_chans} channels and has {net.num_classes} classes, but the images have "
            f"{channels} and {num_classes}; build it for these."
        )
    height, width = _crop_size(settings, data)
    try:
        with torch.no_grad(), pad_small_maps(net):
            outputs = net.eval()(torch.zeros(1, net.num_members, net.in_chans, height, width))
    except InputError:
        raise
    except (RuntimeError, AssertionError, IndexError, ValueError) as error:
        hint = " Set data.image_size to a size it takes, or model.options.img_size if it has such an option."
        raise InputError(
            f"backbone {model.backbone!r} cannot take images of {height}×{width}: {reason(error)}."
            f"{hint if module is None else ''}"
        ) from error
    _check_logits(outputs)
    return net.train()


@contextmanager
def pad_small_maps(net: MixMo) -> Iterator[None]:
    """Pad first, as a step of its own, wherever a convolution's input is smaller than its kernel in this block.

    The outputs are the same. Without it, bfloat16 autocast on a CPU (seen in PyTorch 2.14 with AVX-512) leaves parts of
    such a convolution's weight gradient uninitialised, for example on a feature map of 1 × 1 with stride 2.
    """
    encoders = set(net.encoders.modules())  # their stem convolves by itself, on whole images
    convs = [each for each in net.modules() if isinstance(each, nn.Conv2d) and each not in encoders]
    small: set[nn.Conv2d] = set()

    def watch(conv: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(conv, nn.Conv2d)  # for mypy: hooks take any module
        reaches = (d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
        if any(side <= reach for side, reach in zip(inputs[0].shape[-2:], reaches, strict=True)):
            small.add(conv)

    watching = [conv.register_forward_pre_hook(watch) for conv in convs]
    try:
        yield
    finally:
        for hook in watching:
            hook.remove()
    for conv in small:
        if conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and any(conv.padding):
            rows, columns = conv.padding
            conv.register_forward_pre_hook(functools.partial(_pad, (columns, columns, rows, rows)))
            conv.padding = (0, 0)


def _pad(padding: tuple[int, ...], conv: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
    """Pad a convolution's input with zeros."""
    return (F.pad(inputs[0], padding),)


def _check_logits(outputs: Tensor) -> None:
    """Raise if the network ends in a softmax or log-softmax."""
    for name, sums in {"softmax": outputs.sum((1, 2)), "log_softmax": outputs.exp().sum((1, 2))}.items():
        if outputs.shape[1:].numel() > 1 and bool(((sums - 1).abs() < 1e-4).all()):
            raise InputError(
                f"the network ends in a {name}, but the loss takes logits and applies it itself; remove it from the "
                "module."
            )


def describe(settings: Settings, data: DataModule) -> Header:
    """Return the header of a run's checkpoints."""
    model, (height, width) = settings.model, data.size
    return Header(
        classes=list(data.classes),
        size=(height, width),
        data=Preparation.of(settings.data),
        backbone=model.backbone,
        options=model.options,
        num_members=model.num_members,
        mix_at=model.mix_at,
        multi_label=settings.data.multi_label,
    )


def build_mixer(settings: Settings, net: MixMo, data: DataModule) -> BatchMixer:
    """Build the network's mixer, and sample from it once."""
    allowed, images, members = settings.allow_imports, settings.data, net.num_members
    shape = net.encoder_shape(*_crop_size(settings, data))
    masks, soft = settings.mixer, settings.pixels.kind != "none" or images.multi_label
    mixer = BatchMixer(
        net,
        find_masks(masks.kinds, allowed, members, shape),
        alpha=masks.alpha,
        probability=masks.probability,
        root=masks.root,
        draw_per=masks.draw_per,
        batch_repetition=images.batch_repetition,
        input_repetition=images.input_repetitions,
        pixels=settings.pixels,
        label_smoothing=settings.objective.label_smoothing,
        class_weights=find_class_weights(settings, data),
        multi_label=images.multi_label,
        loss=find_objective(settings.objective.name, allowed, members, net.num_classes, soft),
    )
    mixer.mixer.sample(1, shape, torch.Generator())  # raises before training starts
    return mixer


def _crop_size(settings: Settings, data: DataModule) -> tuple[int, int]:
    """Return the height and width of training images, after padding and cropping."""
    crop, padding, (height, width) = settings.data.crop_size, settings.data.padding, data.size
    rows, columns = data.size if crop is None else height_and_width(crop)
    if rows > height + 2 * padding or columns > width + 2 * padding:
        raise InputError(f"data.crop_size is {crop}, larger than images of {height}×{width} with padding {padding}.")
    if settings.data.padding_mode == "reflect" and padding >= min(height, width):
        raise InputError(
            f"data.padding is {padding}, but images of {height}×{width} can be reflected by less than their smaller "
            "side; lower it, or set data.padding_mode to zeros."
        )
    return rows, columns
