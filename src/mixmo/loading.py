"""Rebuild networks from a header and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mixmo.checkpoints import load as load_checkpoint_file
from mixmo.errors import InputError, explain_errors
from mixmo.escaping import timm_scheme
from mixmo.header import Header
from mixmo.models.copying import copy_module
from mixmo.network import MixMo, create_backbone
from mixmo.runs import RunFolder
from mixmo.seeding import UseGenerator

MODULE = "module "
"""Prefix of a header's ``backbone`` that is a user's module."""


def load_checkpoint(
    run: RunFolder, which: str = "last", download: bool = False, module: nn.Module | None = None
) -> MixMo:
    """Load a run's network, with averaged weights if it has them, on the CPU in evaluation mode.

    Neither the run's configuration nor its dataset is needed. ``module`` is the backbone of a run that was trained with
    a user's module; its weights are replaced.
    """
    file = run.checkpoint_file(which)
    header, state = run.header(which), load_checkpoint_file(file)["state_dict"]
    check_download(
        header.backbone, download, f"the run {run.path}", "allow it with --download, or load(…, download=True)"
    )
    prefix = "average." if any(name.startswith("average.") for name in state) else "net."
    weights = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return rebuild(header, weights, file, module)


def rebuild(
    header: Header, weights: Mapping[str, Tensor], where: Path, module: nn.Module | None = None, fused: bool = False
) -> MixMo:
    """Build the network that a header describes and load its tensors, on the CPU in evaluation mode.

    ``where`` is their file, for errors. ``module`` is the backbone if that was a user's module, or a
    :class:`~mixmo.MixMo` around it. ``fused`` tensors belong to a plain backbone, which becomes one member.

    Example:
        >>> from mixmo.header import Preparation
        >>> data = Preparation(channels=3, interpolation="bicubic", mean=[0.5], std=[0.5], crop_size=None)
        >>> header = Header(["a", "b"], (8, 8), data, "wide_resnet10_1", num_members=2)
        >>> weights = MixMo("wide_resnet10_1", 2, num_classes=2).state_dict()
        >>> rebuild(header, weights, Path("a.safetensors")).num_members
        2
        >>> rebuild(header, {}, Path("a.safetensors"))
        Traceback (most recent call last):
        mixmo.errors.InputError: a.safetensors does not hold the network that it describes: Missing key(s) ...
    """
    if module is None and header.backbone.startswith(MODULE):
        raise InputError(
            f"{where} holds a network around the {header.backbone}, which mixmo cannot build; pass what was trained, "
            "the module or the MixMo around it: mixmo.load(…, model=…), or mixmo.Run(…, model=…) to predict and export."
        )
    sizes: dict[str, Any] = {"num_classes": len(header.classes), "in_chans": header.data.channels}
    options = header.options | {"pretrained": False, "checkpoint_path": ""}
    with explain_errors(f"{where} does not hold the network that it describes"), UseGenerator(torch.Generator()):
        if fused:
            plain = create_backbone(header.backbone, **sizes, **options) if module is None else copy_module(module)
            plain.load_state_dict(weights)
            return MixMo(plain, 1, len(header.classes)).eval()
        if isinstance(module, MixMo):
            net = copy_module(module)
        elif module is not None:
            net = MixMo(module, header.num_members, len(header.classes), mix_at=header.mix_at)
        else:
            net = MixMo(header.backbone, header.num_members, mix_at=header.mix_at, **sizes, **options)
        net.load_state_dict(weights)
    return net.eval()


def read_safetensors(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and tensors of a safetensors file, on the CPU."""
    kinds = (SafetensorError, OSError)
    with explain_errors(f"{file} cannot be read as safetensors", *kinds), safe_open(file, "pt") as content:
        return content.metadata() or {}, {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (no mapping)


def check_download(backbone: str, allowed: bool, where: str, hint: str) -> None:
    """Refuse a backbone that needs a download unless ``allowed``; ``where`` and ``hint`` go into the message."""
    if ({":", "/"} & set(backbone)) and timm_scheme(backbone) != "local-dir" and not allowed:
        raise InputError(f"backbone {backbone!r} of {where} has to be downloaded; {hint}.")
