"""Networks rebuilt from a header and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mixmo.checkpoints import load as read_sealed
from mixmo.errors import InputError, reason
from mixmo.escaping import timm_scheme
from mixmo.header import Header
from mixmo.models.copying import copy_module
from mixmo.network import MixMo, create_backbone
from mixmo.runs import RunFolder
from mixmo.seeding import DrawingFrom

MODULE = "module "
"""What the name of a backbone begins with that a program gave as a module."""


def load_checkpoint(
    run: RunFolder, which: str = "last", download: bool = False, module: nn.Module | None = None
) -> MixMo:
    """Return a run's network, or its average, on the CPU, for evaluation; its configuration and dataset may be gone.

    ``module`` is the backbone of a run that was trained with a program's own module; its weights do not matter.
    """
    file = run.checkpoint_file(which)
    header, state = run.header(which), read_sealed(file)["state_dict"]
    check_download(
        header.backbone, download, f"the run {run.path}", "allow it with --download, or load(…, download=True)"
    )
    prefix = "average." if any(name.startswith("average.") for name in state) else "net."
    weights = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return rebuild(header, weights, file, module)


def rebuild(
    header: Header, weights: Mapping[str, Tensor], where: Path, module: nn.Module | None = None, fused: bool = False
) -> MixMo:
    """Return the network of a header and its tensors, from the file ``where``, on the CPU, in evaluation mode.

    ``module`` is the backbone where that was a program's own module, or a :class:`~mixmo.MixMo` around it. ``fused``
    tensors are of the plain backbone that members were fused into, which is one member.

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
            f"{where} is of a network around a {header.backbone} of a program's own; give it: mixmo.load(…, model=…), "
            "of the same sizes."
        )
    built: dict[str, Any] = {"num_classes": len(header.classes), "in_chans": header.data.channels}
    options = header.options | {"pretrained": False, "checkpoint_path": ""}
    try:
        with DrawingFrom(torch.Generator()):
            if fused:
                plain = create_backbone(header.backbone, **built, **options) if module is None else copy_module(module)
                plain.load_state_dict(weights)
                return MixMo(plain, 1, len(header.classes)).eval()
            if isinstance(module, MixMo):
                net = copy_module(module)
            elif module is not None:
                net = MixMo(module, header.num_members, len(header.classes), mix_at=header.mix_at)
            else:
                net = MixMo(header.backbone, header.num_members, mix_at=header.mix_at, **built, **options)
        net.load_state_dict(weights)
    except Exception as error:  # damage may raise anything
        raise InputError(f"{where} does not hold the network that it describes: {reason(error)}.") from error
    return net.eval()


def read_safetensors(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return a file's metadata and its tensors, on the CPU."""
    try:
        with safe_open(file, "pt") as content:
            return content.metadata() or {}, {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors: {reason(error)}.") from error


def check_download(backbone: str, allowed: bool, where: str, hint: str) -> None:
    """Refuse a backbone that would be downloaded unasked, naming where it stands."""
    if ({":", "/"} & set(backbone)) and timm_scheme(backbone) != "local-dir" and not allowed:
        raise InputError(f"backbone {backbone!r} of {where} has to be downloaded; {hint}.")
