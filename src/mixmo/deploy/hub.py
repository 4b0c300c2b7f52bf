"""Sharing on the Hugging Face Hub, or as a folder of the same form."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch

from mixmo.deploy.card import model_card
from mixmo.deploy.export import export
from mixmo.deploy.load import MEMBERS
from mixmo.deploy.spec import describe_run, write_description
from mixmo.errors import InputError, reason
from mixmo.escaping import printable, timm_scheme
from mixmo.evaluation.inference import TrainedRun
from mixmo.files import assemble, make_folder, write_bytes, write_text
from mixmo.fusing import can_fuse
from mixmo.runs import RunFolder


def save_pretrained(run: str | Path, folder: str | Path, checkpoint: str = "last", name: str | None = None) -> Path:
    """Write what :func:`push_to_hub` uploads: the members' weights, the fused network for timm, and a model card.

    Args:
        run: The run's folder, evaluated by ``mixmo test``, for the figures of the model card.
        folder: A folder that does not exist yet, or is empty.
        checkpoint: ``last`` or ``best``.
        name: Its name in the model card, ``user/name`` on the Hub; ``None`` is the folder.

    Returns:
        The folder.

    Raises:
        MissingError: if there is no such run.
        InputError: if the run is damaged, or the folder is in use or cannot be written.
    """
    trained, out = TrainedRun(RunFolder(run), checkpoint), Path(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{printable(str(out))} exists already; choose another folder.")
    spec, net = describe_run(trained), trained.network
    make_folder(out.parent)
    with assemble(out) as made:
        fused = can_fuse(net)
        if fused:
            export(trained, "timm", made)
        else:  # its members still load
            made.mkdir()
        weights = {name: tensor.cpu().contiguous() for name, tensor in net.state_dict().items()}
        write_bytes(made / MEMBERS, safetensors.torch.save(weights))
        write_description(made, replace(spec, backbone=_without_path(spec.backbone)))
        write_text(made / "README.md", model_card(trained, spec, fused, name))
    return out


def _without_path(backbone: str) -> str:
    """Return a backbone's name without the machine's folders: of a path only the last part."""
    if timm_scheme(backbone) == "hf-hub":
        return backbone
    kind, colon, path = backbone.rpartition(":")
    return f"{kind}{colon}{Path(path).name}"


def push_to_hub(run: str | Path, repository: str, private: bool = False, **options: Any) -> str:
    """Upload a run's network to the Hugging Face Hub.

    Args:
        run: The run's folder.
        repository: ``user/name``; made if it does not exist.
        private: Whether a new one is private.
        **options: More keywords of ``huggingface_hub.HfApi.upload_folder``, such as ``commit_message`` or ``token``.

    Returns:
        The address of the upload.

    Raises:
        MissingError: if there is no such run.
        InputError: if it is damaged, or the Hub refuses.

    Example:
        >>> push_to_hub("runs/nowhere", "user/photos", private=True)
        Traceback (most recent call last):
        mixmo.errors.MissingError: there is no run folder runs/nowhere...
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        made = save_pretrained(run, Path(folder) / "network", name=repository)
        try:
            api = HfApi(token=options.pop("token", None))
            api.create_repo(repository, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=made, **options))
        except Exception as error:  # the network and the Hub raise many kinds of errors
            raise InputError(f"{repository!r} cannot be uploaded: {reason(error)}.") from error
