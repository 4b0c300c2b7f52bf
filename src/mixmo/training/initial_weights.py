"""Initialise a network from trained weights: of timm, a file or another run."""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from mixmo.config.data_settings import SPLIT_SETTINGS, split_settings
from mixmo.config.preprocessing import is_run
from mixmo.config.settings import Settings
from mixmo.digests import SPEC, has_digest
from mixmo.errors import InputError, MissingError
from mixmo.files import read_checkpoint
from mixmo.fusing import fuse
from mixmo.header import Header
from mixmo.loading import load_checkpoint, read_safetensors
from mixmo.network import MixMo, create_backbone
from mixmo.runs import RunFolder

_SCALAR = np.float64().__reduce__()[0]
ALLOWED_TYPES = (Namespace, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), np.dtype,
                 *{type(np.dtype(code)) for code in "?bhilqBHILQefd"})  # fmt: skip
"""Further types allowed in checkpoints: programs' options, and scores as NumPy numbers."""

log = logging.getLogger("mixmo")


def init_from_pretrained(settings: Settings, classes: Sequence[str], module: nn.Module | None = None) -> MixMo:
    """Return a network that initially computes what the trained backbone, or a trained ``module``, does.

    Encoders are the trained stem / M, heads the trained head or, if there is none or the classes differ, independent
    draws; ``model.member_noise`` is added to equal copies.
    """
    own = settings.model
    plain: Any = _load_backbone(settings) if module is None else module
    fresh = module is None and (plain.num_classes != len(classes) or _has_other_classes(settings, classes))
    if fresh:
        plain.reset_classifier(len(classes))
    elif own.num_members > 1 and not own.member_noise:
        log.warning("members start as copies of each other and hardly diverge; set model.member_noise, to 1 say.")
    how: dict[str, Any] = {"fresh_heads": fresh, "noise": own.member_noise, "mix_at": own.mix_at}
    return MixMo(plain, own.num_members, len(classes), trained=True, **how)


def _has_other_classes(settings: Settings, classes: Sequence[str]) -> bool:
    """Return whether the run to start from was trained for other classes, or for labels of another kind."""
    if not is_run(settings.model.pretrained):
        return False
    header = RunFolder(Path(str(settings.model.pretrained))).header()
    return header.classes != list(classes) or header.multi_label != settings.data.multi_label


def _load_backbone(settings: Settings) -> Any:
    """Return the backbone with the weights of ``model.pretrained`` and their number of classes."""
    own, options = settings.model, settings.model.options | {"in_chans": settings.data.channels}
    if own.pretrained is True:
        return create_backbone(own.backbone, pretrained=True, **options)
    source = str(own.pretrained)
    if is_run(source):
        if not Path(source).is_dir():
            raise MissingError(f"model.pretrained {source} is neither true nor a file or a run's folder.")
        run = RunFolder(Path(source))
        _check_run(settings, source, run.header())
        _warn_of_other_splits(settings, run)
        return fuse(load_checkpoint(run, download=own.download))
    backbone: Any = create_backbone(own.backbone, **options)
    weights = find_weights(read_tensors(Path(source)), list(backbone.state_dict()), source, own.backbone)
    stems, heads = (backbone.pretrained_cfg.get(key) or () for key in ("first_conv", "classifier"))
    for name in [stems] if isinstance(stems, str) else stems:  # RGB to grey as in timm
        stem = weights.get(f"{name}.weight")
        if stem is not None and stem.dim() == 4 and stem.shape[1] != settings.data.channels:
            with suppress(NotImplementedError):  # not RGB: _load_state reports it
                weights[f"{name}.weight"] = adapt_input_conv(settings.data.channels, stem)
    heads = (heads,) if isinstance(heads, str) else heads
    head = weights.get(f"{''.join(heads[:1])}.weight")
    if head is not None and len(head) != backbone.num_classes:
        backbone = create_backbone(own.backbone, num_classes=len(head), **options)
    elif heads and not any(key.startswith(tuple(f"{name}." for name in heads)) for key in weights):
        log.info("model.pretrained %s has no classifier; the heads are drawn at random.", source)
        backbone.reset_classifier(0)
    _load_state(backbone, weights, source, own.backbone)
    return backbone


def _check_run(settings: Settings, source: str, header: Header) -> None:
    """Raise if the pretrained run has another backbone or other channels or normalisation."""
    for key in ("model.backbone", "model.options", "data.channels", "data.window", "data.mean", "data.std"):
        section, _, name = key.partition(".")
        before, now = header.sections()[section][name], getattr(getattr(settings, section), name)
        if before != now:
            raise InputError(
                f"model.pretrained {source} was trained with {key} {before}, but here it is {now}; use the same."
            )


def _warn_of_other_splits(settings: Settings, run: RunFolder) -> None:
    """Warn if the pretrained run split the same dataset differently: it may have seen images that are held out here."""
    if not run.config_file.is_file():
        return
    before, now = run.settings(), settings
    if before.data.name == now.data.name and split_settings(asdict(before)) != split_settings(asdict(now)):
        log.warning(
            "model.pretrained %s was trained on another split of %s and may have learned from images that are held out "
            "here; use the same %s and data.split_seed.",
            run.path, now.data.name, ", ".join(f"data.{key}" for key in SPLIT_SETTINGS),
        )  # fmt: skip


def read_tensors(file: Path) -> dict[str, dict[str, Tensor]]:
    """Return all state dicts in a ``.safetensors`` file or torch checkpoint, by their path in it.

    A path joins the keys with dots, as in ``state_dict_ema``; "" is the file itself. Reading executes no code.
    """
    if not file.is_file():
        raise MissingError(f"weights file {file} does not exist.")
    if file.suffix == ".safetensors":
        notes, tensors = read_safetensors(file)
        if SPEC in notes:
            has_digest(file)
        return {"": tensors}
    content: Mapping[str, Any] = read_checkpoint(file, ALLOWED_TYPES)
    state_dicts: dict[str, dict[str, Tensor]] = {}
    queue, seen = [("", content)], set[int]()
    for path, mapping in queue:
        if id(mapping) in seen:
            continue
        seen.add(id(mapping))
        if tensors := {str(name): each for name, each in mapping.items() if isinstance(each, Tensor)}:
            state_dicts[path] = tensors
        inner = ((name, each) for name, each in mapping.items() if isinstance(each, Mapping))
        queue += [(f"{path}.{name}".lstrip("."), each) for name, each in inner]
    if not state_dicts:
        raise InputError(f"{file} holds no weights: it has {', '.join(map(str, list(content)[:3])) or 'nothing'}.")
    return state_dicts


def find_weights(
    state_dicts: Mapping[str, Mapping[str, Tensor]], expected: Sequence[str], source: str, backbone: str
) -> dict[str, Tensor]:
    """Return a backbone's weights from the state dict and prefix that match most of the ``expected`` names.

    Wrappers add prefixes: ``module.`` (DDP and averages), ``_orig_mod.`` (torch.compile), or an attribute's name
    (Lightning's modules). Of equal matches averaged weights are preferred, else the first; the log names it.

    Example:
        >>> state_dicts = {"state_dict": {"model.fc.weight": torch.ones(2), "loss.weight": torch.zeros(2)}}
        >>> find_weights(state_dicts, ["fc.weight", "fc.bias"], "theirs.ckpt", "tiny")
        {'fc.weight': tensor([1., 1.])}
    """
    needed = {name for name in expected if not name.endswith("num_batches_tracked")}  # which averages may lack
    counts = Counter[tuple[str, str]]()
    for path, tensors in state_dicts.items():
        for name in tensors:
            parts = name.split(".")
            for depth in range(len(parts)):
                if ".".join(parts[depth:]) in needed:
                    counts[path, "".join(f"{part}." for part in parts[:depth])] += 1
    most = max(counts.values(), default=0)
    if most < len(needed) / 2:  # names such as norm.weight are in many networks
        have, wanted = (", ".join(list(names)[:3]) for names in (next(iter(state_dicts.values())), expected))
        raise InputError(f"model.pretrained {source} does not fit backbone {backbone!r}: it has {have}, not {wanted}.")
    best = [key for key in counts if counts[key] == most]
    best.sort(key=lambda key: not re.search("ema|swa|average", "".join(key).lower()))
    path, prefix = best[0]
    if len(best) > 1:
        shown = ["/".join(filter(None, key)) or "the file itself" for key in best]
        log.info("model.pretrained %s: weights taken from %s, not from %s.", source, shown[0], ", ".join(shown[1:]))
    weights = {name[len(prefix) :]: each for name, each in state_dicts[path].items() if name.startswith(prefix)}
    for name, each in weights.items():
        if each.layout is not torch.strided or each.is_quantized or each.is_meta:
            raise InputError(
                f"{source} holds {name} as {each.layout} of {each.dtype} on {each.device}; save it as a plain tensor."
            )
        if not each.isfinite().all():
            raise InputError(f"{source} holds {name} with values that are not finite; use an earlier checkpoint.")
    return weights


def _load_state(backbone: nn.Module, weights: Mapping[str, Tensor], source: str, name: str) -> None:
    """Load weights, all of which must fit; batch counters may be missing."""
    needed = backbone.state_dict()
    problems = [f"it lacks {key}" for key in needed if key not in weights and not key.endswith("num_batches_tracked")]
    problems += [f"{name!r} has no {key}" for key in weights if key not in needed]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in needed.items()
        if key in weights and tensor.shape != weights[key].shape
    ]
    if problems:
        count = len(needed.keys() | weights.keys())
        raise InputError(
            f"model.pretrained {source} does not fit backbone {name!r}: {problems[0]} ({len(problems)} of {count} "
            "tensors do not fit); set model.backbone to the network that was trained."
        )
    backbone.load_state_dict(dict(weights), strict=False)
