"""Initialisation from trained weights: timm's, a file's or another run's."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from mixmo.config.settings import Settings
from mixmo.config.starting import PRETRAINED, is_run
from mixmo.data.module import DataModule
from mixmo.digests import SPEC, has_digest
from mixmo.errors import InputError, MissingError, reason
from mixmo.files import read_checkpoint
from mixmo.fusing import fuse
from mixmo.header import Header
from mixmo.loading import load_checkpoint
from mixmo.network import MixMo, create_backbone
from mixmo.runs import RunFolder

log = logging.getLogger("mixmo")

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module", "net", "network",
            "weights")  # fmt: skip
"""Under what training programs put the weights in their checkpoints."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What wrappers (DDP and averages, torch.compile, Lightning's modules) put before the name of every tensor."""

COUNTER = "n_averaged"
"""What torch's averages have counted, which checkpoints hold besides the weights."""


def init_from_pretrained(settings: Settings, start: str, data: DataModule) -> MixMo:
    """Return a network whose members start from trained weights: it computes at first what the plain one computed.

    Encoders are the trained stem / M, heads the trained head. Where ``model.fresh_heads`` is set, or the classes are
    others, each head is a draw of its own; ``model.start_noise`` is added to what is equal.

    Args:
        settings: The run's.
        start: ``pretrained``, a file of weights, or a run's folder.
        data: The run's images; a run to start from has learned from none that they hold out.

    Raises:
        MissingError: if there is no such run or file.
        InputError: if it cannot be fetched, is damaged, or does not fit.
    """
    own, num_classes = settings.model, len(data.classes)
    plain = _plain(settings, start)
    for run in _runs_before(start):
        _check_unseen(data, run)
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
        run = RunFolder(Path(start))
        _check_run(settings, start, run.header())
        return fuse(load_checkpoint(run, download=own.download))
    weights = read_weights(Path(start))
    backbone: Any = create_backbone(own.backbone, **options)
    stems, heads = (_names(backbone.pretrained_cfg.get(key) or ()) for key in ("first_conv", "classifier"))
    for name in stems:  # colours become grey as timm has it
        if (stem := weights.get(f"{name}.weight")) is not None and stem.dim() == 4:
            weights[f"{name}.weight"] = adapt_input_conv(settings.data.channels, stem)
    head = f"{heads[0]}.weight" if heads else ""
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
            with safe_open(file, "pt") as opened:
                described = SPEC in (opened.metadata() or {})
            if described:
                has_digest(file)
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} cannot be read as safetensors: {reason(error)}.") from error
    content: Mapping[str, Any] = read_checkpoint(file, [Namespace])  # a Namespace holds a program's options
    while inner := next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None):
        content = inner
    weights = {str(name): each for name, each in content.items() if isinstance(each, Tensor) and name != COUNTER}
    if not weights:
        raise InputError(f"{file} holds no weights: it has {', '.join(map(str, list(content)[:3])) or 'nothing'}.")
    for name, each in weights.items():
        if each.layout is not torch.strided or each.is_quantized or each.is_meta:
            raise InputError(f"{file} holds {name} {_form(each)}; save it as an ordinary tensor of floats.")
    while prefix := next((each for each in PREFIXES if all(name.startswith(each) for name in weights)), ""):
        weights = {name.removeprefix(prefix): each for name, each in weights.items()}
    return weights


def _form(tensor: Tensor) -> str:
    """Return in what form a tensor is that is no ordinary one."""
    if tensor.is_meta:
        return "without its values (on torch's device meta)"
    return "quantised" if tensor.is_quantized else f"as a sparse tensor ({tensor.layout})"


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


def _check_run(settings: Settings, start: str, theirs: Header) -> None:
    """Refuse a run to start from that does not fit."""
    pairs = {
        "model.backbone": (theirs.backbone, settings.model.backbone),
        "model.options": (theirs.options, settings.model.options),
        **{
            f"data.{key}": (getattr(theirs.data, key), getattr(settings.data, key))
            for key in ("channels", "window", "mean", "std")
        },
    }
    for key, (before, now) in pairs.items():
        if before != now:
            raise InputError(
                f"model.start {start} was trained with {key} {before}, but here it is {now}; set the same."
            )


def _runs_before(start: str) -> Iterator[RunFolder]:
    """Yield the run of a start, that which it started from, and so on."""
    before = list[Path]()
    while is_run(start) and (folder := Path(start).resolve()) not in before:
        if not folder.is_dir():
            log.warning("%s is gone, from which %s started: whether it learned from images held out here is not known.",
                        start, before[-1])  # fmt: skip
            return
        before.append(folder)
        run = RunFolder(Path(start))
        yield run
        start = run.settings().model.start or PRETRAINED


def _check_unseen(data: DataModule, run: RunFolder) -> None:
    """Refuse a run that learned from images which are held out here for validation or testing.

    Its images are listed as it drew them, from the dataset as it is now, if that is the one it was trained on: by the
    names and sizes of its files or, of a run that did not write them down, by its place.
    """
    if not any(map(data.draws, ("validation", "test"))):  # the dataset itself holds them out
        return
    theirs, own = run.settings(), data.settings
    again = DataModule(replace(theirs.data, name=own.name, root=own.root, download=own.download), theirs.seed)
    here = _place(theirs.data.name) == _place(own.name)
    known = run.about().get("data")
    if not (_was_trained_on(again, known) if isinstance(known, dict) else here):
        if here:
            raise InputError(
                f"{own.name!r} has changed since {run.path} was trained, so that what it learned from cannot be told "
                "from what is held out here; bring the images back, or give the dataset folders for validation and "
                "testing."
            )
        return
    held_out = {name for name, _, split in data.split_rows() if split in ("validation", "test")}
    learned = {name for name, _, split in again.split_rows() if split == "train"}
    if both := sorted(held_out & learned):
        raise InputError(
            f"model.start {run.path} has learned from {len(both)} images that are held out here ({both[0]}, say); it "
            f"was trained with data.validation {theirs.data.validation}, data.test {theirs.data.test}, "
            f"data.images_per_class {theirs.data.images_per_class} and a split by seed "
            f"{theirs.data.seed_of_split(theirs.seed)}: set the same (--data.split_seed)."
        )


def _was_trained_on(data: DataModule, known: Mapping[str, Any]) -> bool:
    """Return whether images are those that a run wrote down."""
    try:
        return bool(known.get("fingerprint") == data.fingerprint("train", times=False))
    except InputError:  # it could not have drawn from them
        return False


def _place(name: str) -> str:
    """Return a dataset's name with its path in full."""
    kind, colon, path = name.partition(":")
    return f"{kind}:{os.path.realpath(os.path.expanduser(path))}" if colon else name
