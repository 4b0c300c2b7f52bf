"""mixmo: train an image classifier as an ensemble that costs one network."""

from mixmo import masks
from mixmo.deploy.fuse import fuse
from mixmo.deploy.reference import load_reference_checkpoint
from mixmo.evaluation.evaluate import evaluate
from mixmo.mixing import Mix, Mixer, loss_weights, mixed_cross_entropy
from mixmo.network import MixMo
from mixmo.pairing import pair
from mixmo.runs import load

__all__ = [
    "Mix",
    "MixMo",
    "Mixer",
    "evaluate",
    "fuse",
    "load",
    "load_reference_checkpoint",
    "loss_weights",
    "masks",
    "mixed_cross_entropy",
    "pair",
]
__version__ = "0.1.0"
