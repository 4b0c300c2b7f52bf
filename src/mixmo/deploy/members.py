"""Networks rebuilt from shared folders and files of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import nn

from mixmo.deploy.spec import Spec
from mixmo.digests import SPEC, check_files, has_digest
from mixmo.errors import InputError, MissingError, reason
from mixmo.files import read_yaml
from mixmo.loading import check_download, rebuild
from mixmo.network import MixMo

MEMBERS = "members.safetensors"
CONFIG = "config.yaml"
"""How the network of a shared folder was trained, for information; only earlier versions loaded by it."""

DOWNLOAD = "allow it with load(…, download=True)"


def load_members(folder: Path, download: bool = False, module: nn.Module | None = None) -> tuple[MixMo, Spec]:
    """Return the network of a folder of :func:`save_pretrained`, its members apart, and its description.

    Args:
        folder: The folder.
        download: Whether a backbone that is only described elsewhere may be fetched from there.
        module: The backbone, where that was a program's own module.

    Raises:
        MissingError: if it is none.
        InputError: if it is damaged, or of a newer format.
    """
    for file in (MEMBERS, SPEC):
        if not (folder / file).is_file():
            raise MissingError(f"{folder} is no network of mixmo's: it has no {file}.")
    text = (folder / SPEC).read_text("utf-8", "replace")
    earlier = _is_earlier(text)
    digest = check_files(folder, (MEMBERS, CONFIG) if earlier else (MEMBERS,))
    config = read_yaml(folder / CONFIG, "configuration") if earlier else {}
    spec = Spec.from_json(text, str(folder / SPEC), digest, config=config)
    check_download(spec.backbone, download, f"the folder {folder}", DOWNLOAD)
    return rebuild(spec, _read(folder / MEMBERS), folder / MEMBERS, module), spec


def _is_earlier(description: str) -> bool:
    """Return whether a description is whole and of an earlier version, which wrote no format."""
    try:
        content = json.loads(description)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "format" not in content


def load_weights(file: Path, download: bool = False, module: nn.Module | None = None) -> tuple[MixMo, Spec]:
    """Return the network of a file that ``mixmo export --format safetensors`` wrote, one member, and its description.

    Args:
        file: The file.
        download: As for :func:`load_members`.
        module: As for :func:`load_members`.

    Raises:
        InputError: if it is damaged, of a newer format or none of mixmo's.
    """
    try:
        with safe_open(file, "pt") as content:
            notes: dict[str, str] = content.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors: {reason(error)}.") from error
    if SPEC not in notes:
        inside = f"; load the folder {file.parent}" if (file.parent / SPEC).is_file() else ""
        raise InputError(f"{file} does not say what network its tensors are of, as mixmo's exports do{inside}.")
    spec = Spec.from_json(notes[SPEC], str(file), has_digest(file), model=_earlier_model(notes))
    check_download(spec.backbone, download, f"the file {file}", DOWNLOAD)
    return rebuild(spec, _read(file), file, module, fused=True), spec


def _earlier_model(notes: dict[str, str]) -> dict[str, Any]:
    """Return what earlier versions noted of the backbone apart from the description."""
    try:
        options = json.loads(notes.get("options", "{}"))
        return {"backbone": notes.get("backbone", ""), "options": {k: v for k, v in options.items() if k != "in_chans"}}
    except (ValueError, AttributeError, RecursionError):
        return {}


def _read(file: Path) -> dict[str, Any]:
    try:
        return safetensors.torch.load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors: {reason(error)}.") from error
