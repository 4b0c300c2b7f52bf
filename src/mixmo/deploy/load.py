"""``mixmo.load``: a network from a run, a file, a folder or the Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from mixmo.deploy.spec import Spec
from mixmo.digests import SPEC, check_files, has_digest
from mixmo.errors import InputError, MissingError, explain_errors, one_of, reason
from mixmo.escaping import printable, timm_scheme
from mixmo.loading import check_download, load_checkpoint, read_safetensors, rebuild
from mixmo.network import MixMo
from mixmo.releases import RELEASES, unpack_release
from mixmo.runs import CHECKPOINTS, RunFolder
from mixmo.seeding import UseGenerator

MEMBERS = "members.safetensors"
"""The members' weights in a folder of ``save_pretrained``."""

WEIGHTS, TIMM_CONFIG = "model.safetensors", "config.json"
"""The fused network in timm's format, in an exported folder or one of ``save_pretrained``."""

DOWNLOAD = "allow it with download=True, or --download"


def load(name: str | Path, checkpoint: str = "last", download: bool = False, model: nn.Module | None = None) -> MixMo:
    """Load a trained network for inference.

    Args:
        name: A run's folder; a folder of :func:`~mixmo.deploy.hub.save_pretrained`, or ``hf-hub:user/name`` on the Hub;
            a folder of ``mixmo export --format timm`` or a file of ``--format safetensors``, whose members are fused
            into one; or ``digits-cut``, a small network included in mixmo.
        checkpoint: Of a run: ``last``, or ``best`` on the validation set.
        download: Whether a network ``user/name`` or a backbone defined on the Hub (``hf-hub:…``) may be downloaded.
        model: What was trained, if that was a module of your own or a MixMo around it; its weights do not matter.

    Returns:
        The network on the CPU, in evaluation mode; with EMA, of the averaged weights.

    Raises:
        MissingError: if there is no such network.
        InputError: if it is damaged, of a newer format or of another network, or needs a download.

    Example:
        >>> load("digits-cut").members(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 2, 10])
    """
    one_of(checkpoint, CHECKPOINTS, "checkpoint")
    where = Path(name)
    if name in RELEASES and not where.exists():
        with tempfile.TemporaryDirectory() as folder:
            unpack_release(str(name), run := Path(folder, "run"))
            return load_checkpoint(RunFolder(run), checkpoint)
    if timm_scheme(str(name)) == "hf-hub":
        return from_pretrained(str(name).partition(":")[2], download=download, model=model)
    if where.is_file():
        if where.suffix == ".onnx":
            raise InputError(f"{printable(str(where))} is an ONNX graph; predict with mixmo.Predictor.")
        if where.suffix == ".ckpt":
            raise InputError(f"{printable(str(where))} is a checkpoint; give the folder of its run.")
        return load_weights(where, download, model)[0]
    if (where / MEMBERS).is_file():
        return load_members(where, download, model)[0]
    if (where / SPEC).is_file():
        return MixMo(load_timm(where)[0], 1).eval()
    if not where.exists() and len(where.parts) == 2 and not where.is_absolute():
        if download:
            return from_pretrained(str(name), download=True, model=model)
        raise MissingError(f"there is no run folder {where}; for a name on the Hugging Face Hub, use hf-hub:{where}.")
    return load_checkpoint(RunFolder(where), checkpoint, download, model)


def from_pretrained(name: str | Path, download: bool = False, model: nn.Module | None = None, **options: Any) -> MixMo:
    """Load a network from the Hugging Face Hub, or from a folder of :func:`~mixmo.deploy.hub.save_pretrained`.

    Args:
        name: ``user/name``, or the folder.
        download: Whether a backbone defined elsewhere on the Hub may be downloaded.
        model: What was trained, if that was a module of your own or a MixMo around it.
        **options: Further keywords of ``huggingface_hub.snapshot_download``, such as ``revision`` or ``token``.

    Returns:
        The network on the CPU, in evaluation mode, with separate members.

    Raises:
        MissingError: if there is no such folder, or it is not mixmo's.
        InputError: if it is damaged, or of a newer format.

    Example:
        >>> import mixmo, tempfile
        >>> from mixmo.deploy.hub import save_pretrained
        >>> run = mixmo.fit(recipe="digits-cut", epochs=1, limit_train_batches=2, progress=False)
        >>> folder = save_pretrained(run.path, Path(tempfile.mkdtemp(), "photos"))
        >>> from_pretrained(folder).num_members  # from_pretrained("user/photos") is the Hub's
        2
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(str(name), allow_patterns=[MEMBERS, SPEC], **options))
        except Exception as error:  # the connection and the Hub raise many kinds of errors
            raise MissingError(f"there is no folder {name}, and the Hub says: {reason(error)}.") from error
    return load_members(folder, download, model)[0]


def load_members(folder: Path, download: bool = False, module: nn.Module | None = None) -> tuple[MixMo, Spec]:
    """Load the network of a folder of ``save_pretrained``, with separate members, and its description."""
    spec = _read_spec(folder, [MEMBERS])
    check_download(spec.backbone, download, f"the folder {folder}", DOWNLOAD)
    _, tensors = read_safetensors(folder / MEMBERS)
    return rebuild(spec, tensors, folder / MEMBERS, module), spec


def load_weights(file: Path, download: bool = False, module: nn.Module | None = None) -> tuple[MixMo, Spec]:
    """Load the fused network of a file of ``mixmo export --format safetensors``, and its description."""
    metadata, tensors = read_safetensors(file)
    if SPEC not in metadata:
        hint = f"; load the folder {file.parent}" if (file.parent / SPEC).is_file() else ""
        raise InputError(f"{file} does not name the network of its tensors, as mixmo's exports do{hint}.")
    spec = Spec.from_json(metadata[SPEC], str(file), has_digest(file))
    check_download(spec.backbone, download, f"the file {file}", DOWNLOAD)
    return rebuild(spec, tensors, file, module, fused=True), spec


def load_timm(folder: Path) -> tuple[nn.Module, Spec]:
    """Load the plain network of a folder of ``mixmo export --format timm``, and its description."""
    spec = _read_spec(folder, [TIMM_CONFIG, WEIGHTS])
    with explain_errors(f"{folder} cannot be opened by timm"), UseGenerator(torch.Generator()):
        net: Any = timm.create_model(f"local-dir:{folder}", pretrained=False)
        net.load_state_dict(read_safetensors(folder / WEIGHTS)[1])
        if not net.pretrained_cfg.get("first_conv"):  # not written for other than 1 or 3 channels
            default = timm.get_pretrained_cfg(str(net.pretrained_cfg["architecture"]))
            net.pretrained_cfg["first_conv"] = default and default.first_conv
    return net.eval(), spec


def _read_spec(folder: Path, files: list[str]) -> Spec:
    """Read a folder's description, and verify the digests of its files."""
    for file in (*files, SPEC):
        if not (folder / file).is_file():
            raise MissingError(f"{folder} is not a network saved by mixmo: it has no {file}.")
    digest = check_files(folder, files)
    return Spec.from_json((folder / SPEC).read_text("utf-8", "replace"), str(folder / SPEC), digest)
