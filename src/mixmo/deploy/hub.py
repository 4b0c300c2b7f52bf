"""Sharing on the Hugging Face Hub, or as a folder of the same form."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from mixmo.assembling import assemble
from mixmo.deploy.card import model_card
from mixmo.deploy.export import export
from mixmo.deploy.members import CONFIG, MEMBERS, load_members
from mixmo.deploy.spec import describe_run, write_description
from mixmo.digests import SPEC
from mixmo.errors import InputError, MissingError, reason
from mixmo.evaluation.inference import TrainedRun
from mixmo.files import make_folder, write_bytes, write_text, yaml_text
from mixmo.fusing import can_fuse
from mixmo.names import printable, timm_scheme
from mixmo.network import MixMo
from mixmo.runs import RunFolder


def save_pretrained(run: str | Path, folder: str | Path, checkpoint: str = "last", name: str | None = None) -> Path:
    """Write what :func:`push_to_hub` uploads: the members' weights, the fused network for timm, and a model card.

    Args:
        run: The run's folder, evaluated by ``mixmo test``, for the figures of the model card.
        folder: A folder that does not exist yet, or is empty.
        checkpoint: ``last`` or ``best``.
        name: What the model card calls it, ``user/name`` on the Hub; ``None`` is the folder.

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
        if trained.folder.config_file.is_file():
            write_text(made / CONFIG, yaml_text(_without_paths(trained.folder.trained_config(checkpoint))))
        write_description(made, replace(spec, backbone=_without_path(spec.backbone)))
        write_text(made / "README.md", model_card(trained, spec, fused, name))
    return out


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration that says nothing of the machine's folders: of paths the last part stays."""
    shared = {section: dict(value) if isinstance(value, dict) else value for section, value in config.items()}
    for section, key in (("data", "name"), ("data", "root"), ("model", "start"), ("model", "backbone")):
        text = shared.get(section, {}).get(key)
        if isinstance(text, str) and not text.startswith(("torch/", "hfds/")) and timm_scheme(text) != "hf-hub":
            shared[section][key] = _without_path(text)
    return shared


def _without_path(text: str) -> str:
    """Return a name, of a path its last part."""
    kind, colon, path = text.rpartition(":")
    return text if timm_scheme(text) == "hf-hub" else f"{kind}{colon}{Path(path).name}"


def push_to_hub(run: str | Path, repository: str, private: bool = False, **options: Any) -> str:
    """Upload a run's network to the Hugging Face Hub.

    Args:
        run: The run's folder.
        repository: ``user/name``; made if it does not exist.
        private: Whether others may not see a new one.
        **options: More keywords of ``huggingface_hub.HfApi.upload_folder``, such as ``commit_message`` or ``token``.

    Returns:
        The address of the upload.

    Raises:
        MissingError: if there is no such run.
        InputError: if it is damaged, huggingface_hub is missing, or the Hub refuses.

    Example:
        >>> push_to_hub("runs/photos", "user/photos")  # doctest: +SKIP
    """
    hub = _hub()
    with tempfile.TemporaryDirectory() as folder:
        made = save_pretrained(run, Path(folder) / "network", name=repository)
        try:
            api = hub.HfApi(token=options.pop("token", None))
            api.create_repo(repository, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=made, **options))
        except Exception as error:  # the network and the Hub raise many kinds of errors
            raise InputError(f"{repository!r} cannot be uploaded: {reason(error)}.") from error


def from_pretrained(name: str | Path, download: bool = False, model: nn.Module | None = None, **options: Any) -> MixMo:
    """Return a network from the Hugging Face Hub, or from a folder of :func:`save_pretrained`.

    Args:
        name: ``user/name``, or the folder.
        download: Whether a backbone that is only described elsewhere may be fetched from there.
        model: The backbone of a network that was trained with a module of your own.
        **options: More keywords of ``huggingface_hub.snapshot_download``, such as ``revision`` or ``token``.

    Returns:
        The network on the CPU, in evaluation mode, its members apart.

    Raises:
        MissingError: if there is no such folder, or nothing of mixmo's in it.
        InputError: if it is damaged, huggingface_hub is missing, or the Hub refuses.

    Example:
        >>> net = from_pretrained("user/photos")  # doctest: +SKIP
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            files = [MEMBERS, CONFIG, SPEC]
            folder = Path(_hub().snapshot_download(str(name), allow_patterns=files, **options))
        except InputError:
            raise
        except Exception as error:  # the network and the Hub raise many kinds of errors
            raise MissingError(f"there is no folder {name}, and the Hub says: {reason(error)}.") from error
    return load_members(folder, download, model)[0]


def _hub() -> Any:
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        raise InputError("the Hub needs huggingface_hub; `pip install 'mixmo[hub]'` installs it.") from error
