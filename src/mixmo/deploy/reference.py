"""Checkpoints of the paper's reference implementation, loaded without running code from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mixmo.errors import InputError, explain_errors
from mixmo.files import read_checkpoint
from mixmo.network import MixMo

RULES = [
    (r"^conv1\.", "backbone.conv_stem.encoders.0."),
    (r"^list_conv1\.(\d+)\.", r"backbone.conv_stem.encoders.\1."),
    (r"^fc\.", "backbone.fc.heads.0."),
    (r"^list_fc\.(\d+)\.", r"backbone.fc.heads.\1."),
    (r"^bn1\.", "backbone.norm."),
    (r"^(layer\d+\.\d+)\.shortcut\.0\.", r"\1.shortcut."),
]


def load_reference_checkpoint(path: str | Path) -> MixMo:
    """Load a checkpoint of the authors' code; sizes are inferred from the tensors.

    Supports WideResNet and PreActResNet-18 of any width, with any number of members. Only tensors are unpickled.

    Args:
        path: A ``.ckpt`` with ``classifier_state_dict``.

    Returns:
        A :class:`MixMo` on the CPU, in evaluation mode.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file is damaged or holds another network.

    Example:
        >>> net = load_reference_checkpoint("tests/golden/wrn10-1_m2.ckpt")
        >>> net.num_members, net.num_classes, net.encoder_shape(32, 32)
        (2, 10, (16, 32, 32))
    """
    content = read_checkpoint(path)
    if "classifier_state_dict" not in content:
        raise InputError(f"{path} has no 'classifier_state_dict'; is it a checkpoint of the reference code?")
    return network_from_reference(content["classifier_state_dict"], str(path))


def network_from_reference(state: Mapping[str, Tensor], source: str = "the state dict") -> MixMo:
    """Build a network from weights with the reference implementation's names; ``source`` is named in errors.

    Example:
        >>> import torch
        >>> network_from_reference({"conv1.weight": torch.zeros(16, 3, 3, 3)})
        Traceback (most recent call last):
        mixmo.errors.InputError: the state dict holds no network of the reference code: ...
    """
    with explain_errors(f"{source} holds no network of the reference code"):  # for unexpected names and shapes
        backbone, sizes = _infer_backbone(state)
        stems = [name for name in state if re.match(r"(list_)?conv1\.", name)]
        heads = [name for name in state if re.match(r"(list_)?fc\..*weight", name)]
        classes, channels = state[heads[0]].shape[0], state[stems[0]].shape[1]
        net = MixMo(backbone, len(stems), num_classes=classes, in_chans=channels, **sizes)
        net.load_state_dict({_translate(name): tensor for name, tensor in state.items()})
    return net.eval()


def _infer_backbone(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the backbone's name and sizes: four stages are a PreActResNet-18, three a WideResNet."""
    blocks = {tuple(match.groups()) for name in state if (match := re.match(r"layer(\d+)\.(\d+)\.", name))}
    stages = {stage for stage, _ in blocks}
    width = state["layer1.0.conv1.weight"].shape[0]
    if len(stages) == 4:
        return "preact_resnet18", {"width": width // 64}
    return "wide_resnet", {"width": width // 16, "depth": 6 * (len(blocks) // len(stages)) + 4}


def _translate(name: str) -> str:
    """Return mixmo's name of a tensor of the reference implementation."""
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    stage = re.match(r"^layer(\d+)\.(.*)$", name)
    return f"backbone.stages.{int(stage[1]) - 1}.{stage[2]}" if stage else name
