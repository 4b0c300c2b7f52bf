"""mixmo: train an image classifier as an ensemble that costs one network.

Importing the package loads the network, and registers the paper's backbones with timm; the other public names are
imported when they are first used. The command line, which often needs no network, imports nothing beforehand.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "BatchMixer",
    "Mix",
    "MixMo",
    "MixedBatch",
    "Mixer",
    "Predictor",
    "Run",
    "compare",
    "evaluate",
    "fit",
    "from_pretrained",
    "fuse",
    "load",
    "load_reference_checkpoint",
    "loss_weights",
    "masks",
    "mixed_binary_cross_entropy",
    "mixed_cross_entropy",
    "pair",
    "push_to_hub",
]
__version__ = "1.0.0"

if TYPE_CHECKING:
    from mixmo import masks
    from mixmo.batch_mixing import BatchMixer, MixedBatch
    from mixmo.comparing import compare
    from mixmo.deploy.hub import push_to_hub
    from mixmo.deploy.load import from_pretrained, load
    from mixmo.deploy.predictor import Predictor
    from mixmo.deploy.reference import load_reference_checkpoint
    from mixmo.evaluation.evaluate import evaluate
    from mixmo.fusing import fuse
    from mixmo.library import Run, fit
    from mixmo.mixing import Mix, Mixer, loss_weights, mixed_binary_cross_entropy, mixed_cross_entropy
    from mixmo.network import MixMo
    from mixmo.pairing import pair
else:  # hidden from type checkers, for which every attribute would exist
    _HOMES = {
        "BatchMixer": "mixmo.batch_mixing",
        "Mix": "mixmo.mixing",
        "MixMo": "mixmo.network",
        "MixedBatch": "mixmo.batch_mixing",
        "Mixer": "mixmo.mixing",
        "Predictor": "mixmo.deploy.predictor",
        "Run": "mixmo.library",
        "compare": "mixmo.comparing",
        "evaluate": "mixmo.evaluation.evaluate",
        "fit": "mixmo.library",
        "from_pretrained": "mixmo.deploy.load",
        "fuse": "mixmo.fusing",
        "load": "mixmo.deploy.load",
        "load_reference_checkpoint": "mixmo.deploy.reference",
        "loss_weights": "mixmo.mixing",
        "mixed_binary_cross_entropy": "mixmo.mixing",
        "mixed_cross_entropy": "mixmo.mixing",
        "pair": "mixmo.pairing",
        "push_to_hub": "mixmo.deploy.hub",
    }

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used (PEP 562)."""
        if name == "masks":
            return import_module("mixmo.masks")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return found

    def __dir__() -> list[str]:
        """Return every name, imported or not."""
        return sorted({*globals(), *__all__})


if "mixmo_command" not in sys.modules:
    import_module("mixmo.batch_mixing")
