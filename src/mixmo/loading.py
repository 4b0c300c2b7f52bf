"""A run's trained network, and what its checkpoint knows of the images it takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mixmo.checkpoints import finished_epochs
from mixmo.checkpoints import load as read_sealed
from mixmo.config.data_settings import LARGEST_SIDE
from mixmo.errors import InputError
from mixmo.models.copying import copied
from mixmo.names import timm_scheme
from mixmo.network import MixMo
from mixmo.runs import Run
from mixmo.seeding import DrawingFrom

MODULE = "module "
"""What the name of a backbone begins with that a program gave as a module."""


def load(run: str | Path, checkpoint: str = "last", download: bool = False, model: nn.Module | None = None) -> MixMo:
    """Return a trained network, ready for inference, from a run's folder.

    Args:
        run: The run's folder.
        checkpoint: ``last``, or ``best`` on the validation set.
        download: Whether a backbone that is only described elsewhere (``hf-hub:…``) may be fetched from there.
        model: The backbone of a run that was trained with a module of your own; its weights do not matter.

    Returns:
        The network on the CPU, in evaluation mode; with averaged weights (EMA), their network.

    Raises:
        MissingError: if there is no such run or checkpoint.
        InputError: if the checkpoint is damaged or of another network, or it takes a download.

    Example:
        >>> net = load("runs/quickstart")  # doctest: +SKIP
    """
    return load_checkpoint(Run(run), checkpoint, download, model).net


class Loaded(NamedTuple):
    """What a checkpoint knows.

    Attributes:
        net: The network, on the CPU, in evaluation mode.
        epochs: Epochs it was trained for.
        classes: The K class names; their numbers, where the checkpoint is of an earlier version.
        size: (H, W) of the images that its input is cropped from; ``None`` in checkpoints of an earlier version.
    """

    net: MixMo
    epochs: int
    classes: list[str]
    size: tuple[int, int] | None


def load_checkpoint(run: Run, which: str = "last", download: bool = False, module: nn.Module | None = None) -> Loaded:
    """Return a run's network, and what else its checkpoint knows; the dataset may be gone.

    Args:
        run: The run.
        which: ``last``, or ``best`` on the validation set.
        download: As for :func:`load`.
        module: As for :func:`load`.

    Raises:
        MissingError: as :func:`load`.
        InputError: as :func:`load`.
    """
    file = run.checkpoint_file(which)
    content, settings = read_sealed(file), run.settings(which)
    model = settings.model
    if module is None and model.backbone.startswith(MODULE):
        raise InputError(
            f"{run.path} was trained with a {model.backbone} of a program's own; give it: mixmo.load(…, model=…), of "
            "the same sizes."
        )
    check_download(
        model.backbone, download, f"the run {run.path}", "allow it with --download, or load(…, download=True)"
    )
    try:
        with DrawingFrom(torch.Generator()):
            if isinstance(module, MixMo):
                net = copied(module)
            elif module is not None:
                net = MixMo(module, model.num_members, num_classes=content["num_classes"], mix_at=model.mix_at)
            else:
                net = MixMo(
                    model.backbone,
                    model.num_members,
                    num_classes=content["num_classes"],
                    in_chans=settings.data.channels,
                    mix_at=model.mix_at,
                    **(model.options | {"pretrained": False, "checkpoint_path": ""}),
                )
        net.load_state_dict(weights_of(content))
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        why = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{file} does not hold the network that it describes, or {run.config_file}: {why}") from error
    return Loaded(net.eval(), finished_epochs(content), *_inference(file, content.get("inference"), net.num_classes))


def _inference(file: Path, known: Any, num_classes: int) -> tuple[list[str], tuple[int, int] | None]:
    """Return the class names and the size of images that a checkpoint names."""
    if not known:
        return [str(number) for number in range(num_classes)], None
    names, size = (known.get(key) if isinstance(known, dict) else None for key in ("classes", "size"))
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(each, str) for each in names):
        raise InputError(f"{file} is damaged: its class names cannot be.")
    if not isinstance(size, list) or len(size) != 2 or not all(side in range(1, LARGEST_SIDE + 1) for side in size):
        raise InputError(f"{file} is damaged: its size of images cannot be.")
    return names, (int(size[0]), int(size[1]))


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights to evaluate: the moving average where there is one, else the trained network's."""
    state: dict[str, torch.Tensor] = checkpoint["state_dict"]
    prefix = "average." if any(name.startswith("average.") for name in state) else "net."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def check_download(backbone: str, allowed: bool, where: str, hint: str) -> None:
    """Refuse a backbone that would be fetched from the network unasked.

    Raises:
        InputError: naming it and where it stands.
    """
    if ({":", "/"} & set(backbone)) and timm_scheme(backbone) != "local-dir" and not allowed:
        raise InputError(f"backbone {backbone!r} of {where} has to be fetched from the network; {hint}.")
