"""Networks rebuilt from a header and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
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
    """Return a run's network, on the CPU, in evaluation mode; its configuration and dataset may be gone.

    Args:
        run: The run.
        which: ``last``, or ``best`` on the validation set.
        download: Whether a backbone that is only described elsewhere (``hf-hub:…``) may be downloaded.
        module: The backbone of a run that was trained with a program's own module; its weights do not matter.

    Raises:
        MissingError: if there is no such run or checkpoint.
        InputError: if the checkpoint is damaged, of a newer format or of another network, or it takes a download.
    """
    file = run.checkpoint_file(which)
    header, content = run.header(which), read_sealed(file)
    check_download(
        header.backbone, download, f"the run {run.path}", "allow it with --download, or load(…, download=True)"
    )
    return rebuild(header, weights_of(content), file, module)


def rebuild(
    header: Header, weights: Mapping[str, Tensor], where: Path, module: nn.Module | None = None, fused: bool = False
) -> MixMo:
    """Return the network of a header and its tensors.

    Args:
        header: What the network is.
        weights: Its tensors by name.
        where: Their file, for errors.
        module: The backbone where that was a program's own module, or a :class:`~mixmo.MixMo` around it.
        fused: Whether the tensors are of the plain backbone that members were fused into, which is one member.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        InputError: if they do not fit, or the backbone is not given.

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


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights to evaluate: the moving average where there is one, else the trained network's."""
    state: dict[str, torch.Tensor] = checkpoint["state_dict"]
    prefix = "average." if any(name.startswith("average.") for name in state) else "net."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def check_download(backbone: str, allowed: bool, where: str, hint: str) -> None:
    """Refuse a backbone that would be downloaded unasked.

    Raises:
        InputError: naming it and where it stands.
    """
    if ({":", "/"} & set(backbone)) and timm_scheme(backbone) != "local-dir" and not allowed:
        raise InputError(f"backbone {backbone!r} of {where} has to be downloaded; {hint}.")
