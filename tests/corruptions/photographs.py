"""Random pictures that tests corrupt."""

import numpy as np
import torch
from scipy import ndimage

from mixmo.corruptions import corrupt

COUNT = 4


def pictures(side=32, seed=0, width=None):
    """Smooth random pictures, uint8 (B, H, W, 3), with dark and bright parts."""
    rng = np.random.default_rng(seed)
    rough = rng.normal(size=(COUNT, side, width or side, 3))
    smooth = ndimage.gaussian_filter(rough, (0, side / 16, side / 16, 0))
    return torch.from_numpy((128 + 90 * smooth / smooth.std()).clip(0, 255).astype(np.uint8))


def as_floats(images):
    return (images.float() / 255).permute(0, 3, 1, 2)


def corrupted(kind, severity, images, seed=0):
    return corrupt(images, kind, severity, torch.Generator().manual_seed(seed))
