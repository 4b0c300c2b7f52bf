"""mixmo: train an image classifier as an ensemble that costs one network.

Importing the package loads the network and registers the paper's backbones with timm; other public names are imported
on first use. The command line, which often needs no network, starts without these imports.
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
else:  # hidden from type checkers, which would otherwise accept any attribute
    _MODULES = {
        name: f"mixmo.{module}"
        for module, names in {
            "batch_mixing": "BatchMixer MixedBatch",
            "comparing": "compare",
            "deploy.hub": "push_to_hub",
            "deploy.load": "from_pretrained load",
            "deploy.predictor": "Predictor",
            "deploy.reference": "load_reference_checkpoint",
            "evaluation.evaluate": "evaluate",
            "fusing": "fuse",
            "library": "Run fit",
            "mixing": "Mix Mixer loss_weights mixed_binary_cross_entropy mixed_cross_entropy",
            "network": "MixMo",
            "pairing": "pair",
        }.items()
        for name in names.split()
    }

    def __getattr__(name: str) -> Any:
        """Import a public name on first use (PEP 562)."""
        if name == "masks":
            return import_module("mixmo.masks")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value

    def __dir__() -> list[str]:
        """List all public names, imported or not."""
        return sorted({*globals(), *__all__})


if "mixmo_command" not in sys.modules:
    import_module("mixmo.batch_mixing")
