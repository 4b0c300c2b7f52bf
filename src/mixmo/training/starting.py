"""Members that start from trained weights: timm's, a file's, or those of another run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from mixmo.config.settings import Settings
from mixmo.config.starting import PRETRAINED, is_run
from mixmo.errors import InputError, MissingError, reason
from mixmo.files import read_checkpoint
from mixmo.fusing import fuse
from mixmo.loading import load_checkpoint
from mixmo.network import MixMo, create_backbone
from mixmo.runs import Run

log = logging.getLogger("mixmo")

WRAPPERS = ("state_dict_ema", "state_dict", "model", "module")
"""Under what training programs put the weights in their checkpoints."""


def started(settings: Settings, start: str, num_classes: int) -> MixMo:
    """Return a network whose members start from trained weights: it computes at first what the plain one computed.

    Encoders are the trained stem / M, heads the trained head. Where ``model.fresh_heads`` is set, or the classes are
    others, each head is a draw of its own; ``model.start_noise`` is added to what is equal.

    Args:
        settings: The run's.
        start: ``pretrained``, a file of weights, or a run's folder.
        num_classes: K.

    Raises:
        MissingError: if there is no such run or file.
        InputError: if it cannot be fetched, is damaged, or does not fit.
    """
    own = settings.model
    plain = _plain(settings, start)
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


def _plain(settings: Settings, start: str) -> Any:
    """Return the plain backbone with the weights to start from, and its own number of classes."""
    own, options = settings.model, settings.model.options | {"in_chans": settings.data.channels}
    if start == PRETRAINED:
        return create_backbone(own.backbone, pretrained=True, **options)
    if is_run(start):
        if not Path(start).is_dir():
            raise MissingError(f"model.start {start} is neither {PRETRAINED!r} nor a file or a run's folder.")
        run = Run(Path(start))
        _check_run(settings, start, run.settings())
        return fuse(load_checkpoint(run, download=own.download).net)
    weights = read_weights(Path(start))
    backbone: Any = create_backbone(own.backbone, **options)
    stems, heads = (_names(backbone.pretrained_cfg[key]) for key in ("first_conv", "classifier"))
    for name in stems:  # colours become grey as timm has it
        if (stem := weights.get(f"{name}.weight")) is not None and stem.dim() == 4:
            weights[f"{name}.weight"] = adapt_input_conv(settings.data.channels, stem)
    head = f"{heads[0]}.weight"
    if head in weights and len(weights[head]) != backbone.num_classes:
        backbone = create_backbone(own.backbone, num_classes=len(weights[head]), **options)
    _load(backbone, weights, start, own.backbone)
    return backbone


def _names(known: str | Sequence[str]) -> list[str]:
    return [known] if isinstance(known, str) else list(known)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` file or of a torch checkpoint, by name.

    Args:
        file: The file; nothing in it acts when it is read.

    Raises:
        MissingError: if there is no such file.
        InputError: if it is damaged, or holds no weights.
    """
    if not file.is_file():
        raise MissingError(f"there is no file of weights {file}.")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} cannot be read as safetensors: {reason(error)}.") from error
    content: Mapping[str, Any] = read_checkpoint(file)
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    weights = {str(name).removeprefix("module."): each for name, each in content.items() if isinstance(each, Tensor)}
    if not weights:
        raise InputError(f"{file} holds no weights: it has {', '.join(map(str, list(content)[:3])) or 'nothing'}.")
    return weights


def _load(backbone: nn.Module, weights: Mapping[str, Tensor], start: str, name: str) -> None:
    """Load weights that have to fit in every tensor; counters of batches may be missing."""
    own = backbone.state_dict()
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    strange = [key for key in weights if key not in own]
    shapes = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    problem = (
        f"it lacks {missing[0]}" if missing
        else f"{name!r} has no {strange[0]}" if strange
        else f"{shapes[0]} is {tuple(weights[shapes[0]].shape)}, not {tuple(own[shapes[0]].shape)}" if shapes
        else ""
    )  # fmt: skip
    if problem:
        raise InputError(
            f"model.start {start} does not fit backbone {name!r}: {problem} ({len(missing)} missing, {len(strange)} "
            f"unknown, {len(shapes)} of another shape, of {len(own)})."
        )
    backbone.load_state_dict(dict(weights), strict=False)


def _check_run(settings: Settings, start: str, theirs: Settings) -> None:
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
