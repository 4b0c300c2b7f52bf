"""``mixmo.load``: a network from a run, a file, a folder or the Hub."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from mixmo.deploy.hub import from_pretrained
from mixmo.deploy.members import MEMBERS, load_members, load_weights
from mixmo.deploy.models import TimmModel
from mixmo.digests import SPEC
from mixmo.errors import InputError, MissingError, one_of
from mixmo.loading import load_checkpoint
from mixmo.names import printable, timm_scheme
from mixmo.network import MixMo
from mixmo.runs import CHECKPOINTS, RunFolder


def load(name: str | Path, checkpoint: str = "last", download: bool = False, model: nn.Module | None = None) -> MixMo:
    """Return a trained network, ready for inference, by its header and its tensors.

    Args:
        name: A run's folder; a folder of :func:`~mixmo.deploy.hub.save_pretrained`, or ``hf-hub:user/name`` on the Hub;
            a folder of ``mixmo export --format timm`` or a file of ``--format safetensors``, whose members are fused
            into one.
        checkpoint: Of a run: ``last``, or ``best`` on the validation set.
        download: Whether a network that is not here, ``user/name``, may be fetched from the Hub, and a backbone that is
            only described elsewhere (``hf-hub:…``) from there.
        model: The backbone of a network that was trained with a module of your own; its weights do not matter.

    Returns:
        The network on the CPU, in evaluation mode; with averaged weights (EMA), their network.

    Raises:
        MissingError: if there is no such network.
        InputError: if it is damaged, of a newer format or of another network, or it takes a download.

    Example:
        >>> net = load("runs/quickstart")  # doctest: +SKIP
    """
    one_of(checkpoint, CHECKPOINTS, "checkpoint")
    where = Path(name)
    if timm_scheme(str(name)) == "hf-hub":
        return from_pretrained(str(name).partition(":")[2], download=download, model=model)
    if where.is_file():
        if where.suffix in (".onnx", ".pt2"):
            raise InputError(f"{printable(str(where))} is a graph; mixmo.Predictor predicts with it.")
        if where.suffix == ".ckpt":
            raise InputError(f"{printable(str(where))} is a checkpoint; give the folder of its run.")
        return load_weights(where, download, model)[0]
    if (where / MEMBERS).is_file():
        return load_members(where, download, model)[0]
    if (where / SPEC).is_file():
        net = MixMo(TimmModel(where).net, 1)
        return net.eval()
    if not where.exists() and len(where.parts) == 2 and not where.is_absolute():
        if download:
            return from_pretrained(str(name), download=True, model=model)
        raise MissingError(
            f"there is no run folder {where}; if it is a name on the Hugging Face Hub, take hf-hub:{where}."
        )
    return load_checkpoint(RunFolder(where), checkpoint, download, model)
