"""The network of a shared folder, its members apart."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from mixmo.config.plan import make_plan
from mixmo.deploy.spec import Spec
from mixmo.digests import SPEC, check_files
from mixmo.errors import InputError, MissingError, reason
from mixmo.files import read_yaml
from mixmo.loading import check_download
from mixmo.network import MixMo
from mixmo.seeding import DrawingFrom

MEMBERS = "members.safetensors"
CONFIG = "config.yaml"


def load_members(folder: Path) -> tuple[MixMo, Spec]:
    """Return the network of a folder of :func:`save_pretrained`, and its description.

    Args:
        folder: The folder.

    Raises:
        MissingError: if it is none.
        InputError: if it is damaged.
    """
    for file in (MEMBERS, CONFIG, SPEC):
        if not (folder / file).is_file():
            raise MissingError(f"{folder} is no network of mixmo's: it has no {file}.")
    digest = check_files(folder, (MEMBERS, CONFIG))
    spec = Spec.from_json((folder / SPEC).read_text("utf-8", "replace"), str(folder / SPEC), digest)
    settings = make_plan(read_yaml(folder / CONFIG, "configuration")).settings
    model = settings.model
    check_download(model.backbone, False, f"the folder {folder}", "load it from a run with download=True")
    try:
        weights: dict[str, Tensor] = safetensors.torch.load_file(folder / MEMBERS)
        with DrawingFrom(torch.Generator()):
            net = MixMo(
                model.backbone,
                model.num_members,
                num_classes=len(spec.classes),
                in_chans=settings.data.channels,
                mix_at=model.mix_at,
                **model.options,
            )
        net.load_state_dict(weights)
    except Exception as error:  # whatever damaged weights come to
        raise InputError(f"{folder / MEMBERS} does not hold the network of {CONFIG}: {reason(error)}.") from error
    return net.eval(), spec
