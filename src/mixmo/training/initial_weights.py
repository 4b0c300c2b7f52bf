"""Initialisation from trained weights: timm's, a file's or another run's."""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

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
PLAIN = (Namespace, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), np.dtype,
         *{type(np.dtype(code)) for code in "?bhilqBHILQefd"})  # fmt: skip
"""Types in checkpoints other than tensors and Python's own: programs' options, and scores as NumPy numbers."""

log = logging.getLogger("mixmo")

SHARES = ("validation", "test", "folds", "fold", "images_per_class")
"""Settings of ``data`` that determine which images are drawn, in addition to its seed."""


def init_from_pretrained(settings: Settings, num_classes: int) -> MixMo:
    """Return a network whose members start from trained weights: at first it computes what the plain one does.

    Encoders are the trained stem / M, heads the trained head or, if the number of classes differs, independent draws;
    ``model.member_noise`` is added to equal copies.
    """
    own, plain = settings.model, _plain(settings)
    if fresh := plain.num_classes != num_classes:
        plain.reset_classifier(num_classes)
    elif own.num_members > 1 and not own.member_noise:
        log.warning("members start as copies of each other and hardly separate; set model.member_noise, to 1 say.")
    return MixMo(plain, own.num_members, trained=True, fresh_heads=fresh, noise=own.member_noise, mix_at=own.mix_at)


def _plain(settings: Settings) -> Any:
    """Return the plain backbone with the weights of ``model.pretrained``, and its own number of classes."""
    own, options = settings.model, settings.model.options | {"in_chans": settings.data.channels}
    if own.pretrained is True:
        return create_backbone(own.backbone, pretrained=True, **options)
    source = str(own.pretrained)
    if is_run(source):
        if not Path(source).is_dir():
            raise MissingError(f"model.pretrained {source} is neither true nor a file or a run's folder.")
        run = RunFolder(Path(source))
        _check_run(settings, source, run.header())
        _compare_splits(settings, run)
        return fuse(load_checkpoint(run, download=own.download))
    backbone: Any = create_backbone(own.backbone, **options)
    weights = find_weights(read_tensors(Path(source)), list(backbone.state_dict()), source, own.backbone)
    stems, heads = (backbone.pretrained_cfg.get(key) or () for key in ("first_conv", "classifier"))
    for name in [stems] if isinstance(stems, str) else stems:  # colours become grey as in timm
        stem = weights.get(f"{name}.weight")
        if stem is not None and stem.dim() == 4 and stem.shape[1] != settings.data.channels:
            with suppress(NotImplementedError):  # of other bands than colours, which _load reports
                weights[f"{name}.weight"] = adapt_input_conv(settings.data.channels, stem)
    head = weights.get(f"{heads if isinstance(heads, str) else ''.join(heads[:1])}.weight")
    if head is not None and len(head) != backbone.num_classes:
        backbone = create_backbone(own.backbone, num_classes=len(head), **options)
    _load(backbone, weights, source, own.backbone)
    return backbone


def _check_run(settings: Settings, source: str, theirs: Header) -> None:
    """Refuse a run to start from that does not fit."""
    for key in ("model.backbone", "model.options", "data.channels", "data.window", "data.mean", "data.std"):
        section, _, name = key.partition(".")
        before, now = theirs.sections()[section][name], getattr(getattr(settings, section), name)
        if before != now:
            raise InputError(
                f"model.pretrained {source} was trained with {key} {before}, but here it is {now}; set the same."
            )


def _compare_splits(settings: Settings, run: RunFolder) -> None:
    """Warn of a run trained on other shares of the same dataset: it may have seen images that are held out here."""
    if not run.config_file.is_file():
        return
    theirs, own = run.settings(), settings.data
    if theirs.data.name == own.name and (
        theirs.data.seed_of_split(theirs.seed) != own.seed_of_split(settings.seed)
        or any(getattr(theirs.data, key) != getattr(own, key) for key in SHARES)
    ):
        log.warning(
            "model.pretrained %s was trained on other shares of %s, and may have learned from images that are held out "
            "here; set the same %s and data.split_seed.",
            run.path, own.name, ", ".join(f"data.{key}" for key in SHARES),
        )  # fmt: skip


def read_tensors(file: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a ``.safetensors`` file or of a torch checkpoint by name, for each mapping that holds some.

    Mappings are named by their keys in the checkpoint, joined by dots, as ``state_dict_ema``; "" is the file itself.
    Reading executes nothing.
    """
    if not file.is_file():
        raise MissingError(f"there is no file of weights {file}.")
    if file.suffix == ".safetensors":
        notes, tensors = read_safetensors(file)
        if SPEC in notes:
            has_digest(file)
        return {"": tensors}
    content: Mapping[str, Any] = read_checkpoint(file, PLAIN)
    found: dict[str, dict[str, Tensor]] = {}
    waiting, seen = [("", content)], set[int]()
    for place, mapping in waiting:
        if id(mapping) in seen:
            continue
        seen.add(id(mapping))
        if tensors := {str(name): each for name, each in mapping.items() if isinstance(each, Tensor)}:
            found[place] = tensors
        inner = ((name, each) for name, each in mapping.items() if isinstance(each, Mapping))
        waiting += [(f"{place}.{name}".lstrip("."), each) for name, each in inner]
    if not found:
        raise InputError(f"{file} holds no weights: it has {', '.join(map(str, list(content)[:3])) or 'nothing'}.")
    return found


def find_weights(
    found: Mapping[str, Mapping[str, Tensor]], expected: Sequence[str], source: str, backbone: str
) -> dict[str, Tensor]:
    """Return a backbone's tensors among those of a checkpoint: the mapping and prefix that match most of its names.

    Wrappers put prefixes before names: ``module.`` (DDP and averages), ``_orig_mod.`` (torch.compile), or an
    attribute's name (Lightning's modules). Where several places match equally, averaged weights are taken, else the
    first; the log then names it.

    Example:
        >>> found = {"state_dict": {"model.fc.weight": torch.ones(2), "loss.weight": torch.zeros(2)}}
        >>> find_weights(found, ["fc.weight", "fc.bias"], "theirs.ckpt", "tiny")
        {'fc.weight': tensor([1., 1.])}
    """
    own = {name for name in expected if not name.endswith("num_batches_tracked")}  # which averages may lack
    counts = Counter[tuple[str, str]]()
    for place, tensors in found.items():
        for name in tensors:
            parts = name.split(".")
            for depth in range(len(parts)):
                if ".".join(parts[depth:]) in own:
                    counts[place, "".join(f"{part}." for part in parts[:depth])] += 1
    most = max(counts.values(), default=0)
    if most < len(own) / 2:  # names such as norm.weight are in many networks
        have, wanted = (", ".join(list(names)[:3]) for names in (next(iter(found.values())), expected))
        raise InputError(f"model.pretrained {source} does not fit backbone {backbone!r}: it has {have}, not {wanted}.")
    best = [key for key in counts if counts[key] == most]
    best.sort(key=lambda key: not re.search("ema|swa|average", "".join(key).lower()))
    place, prefix = best[0]
    if len(best) > 1:
        shown = ["/".join(filter(None, key)) or "the file itself" for key in best]
        log.info("model.pretrained %s: weights taken from %s, not from %s.", source, shown[0], ", ".join(shown[1:]))
    weights = {name[len(prefix) :]: each for name, each in found[place].items() if name.startswith(prefix)}
    for name, each in weights.items():
        if each.layout is not torch.strided or each.is_quantized or each.is_meta:
            raise InputError(
                f"{source} holds {name} as {each.layout} of {each.dtype} on {each.device}; save it as a plain tensor."
            )
        if not each.isfinite().all():
            raise InputError(f"{source} holds {name} with values that are not finite; take an earlier checkpoint.")
    return weights


def _load(backbone: nn.Module, weights: Mapping[str, Tensor], source: str, name: str) -> None:
    """Load weights, all of which have to fit; batch counters may be missing."""
    own = backbone.state_dict()
    problems = [f"it lacks {key}" for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    problems += [f"{name!r} has no {key}" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in weights and own[key].shape != weights[key].shape
    ]
    if problems:
        raise InputError(
            f"model.pretrained {source} does not fit backbone {name!r}: {problems[0]} ({len(problems)} of {len(own)} "
            "tensors do not fit); set model.backbone to the network that it was trained as."
        )
    backbone.load_state_dict(dict(weights), strict=False)
