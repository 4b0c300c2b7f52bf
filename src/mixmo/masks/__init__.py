"""The catalogue of masks: how members share the positions of a feature map.

Every function has one signature, works on the whole batch at once and on any device::

    masks = function(ratios, shape, generator, roles)

* ``ratios`` (B, M): the requested share of each part, rows sum to one.
* ``shape`` (F, h, w): channels, height and width of the encoders' output.
* ``generator``: where random positions come from, on the device of ``ratios``; ``None`` is torch's own.
* ``roles`` (M,) or (B, M): a permutation for kinds whose parts differ: member i gets the mask of part roles[i], so
  that part 0, the rectangle, falls to the member with role 0. ``None`` leaves them in order.
* returns masks (B, M, 1 or F, h, w), in [0, 1], that sum to one over the members everywhere. Kinds of rows, columns or
  channels return views that take no memory for what is only repeated.
* raises ``InputError`` where a map has fewer rows, columns, channels or cells than there are members to share them.

What a mask really gives to a member, its *realised* ratio, is its mean; it may differ from the request.
``KINDS`` maps each name to its function. Each function's docstring gives the distribution of its masks, kappa_i being
the requested ratio of part i, and a picture: the number of the member that has most of each position.

Example:
    >>> import torch
    >>> for kind in ("cut", "voronoi", "channel"):
    ...     KINDS[kind](torch.full((4, 3), 1 / 3), (16, 8, 8), torch.Generator().manual_seed(0), None).shape
    torch.Size([4, 3, 1, 8, 8])
    torch.Size([4, 3, 1, 8, 8])
    torch.Size([4, 3, 16, 8, 8])
"""

from mixmo.masks.blocks import patchup_2d, patchup_hard, patchup_soft
from mixmo.masks.cells import grid, voronoi
from mixmo.masks.constant import linear, mimo
from mixmo.masks.parts import FeatureShape, MaskFunction
from mixmo.masks.rectangles import cut, cut_exact, cut_partition
from mixmo.masks.smooth import cow, fmix
from mixmo.masks.splits import bernoulli, channel, horizontal, noise, vertical

__all__ = ["CONSTANT", "KINDS", "FeatureShape", "MaskFunction"]

KINDS: dict[str, MaskFunction] = {
    "mimo": mimo,
    "linear": linear,
    "cut": cut,
    "cut-exact": cut_exact,
    "cut-partition": cut_partition,
    "cow": cow,
    "fmix": fmix,
    "patchup-hard": patchup_hard,
    "patchup-soft": patchup_soft,
    "patchup-2d": patchup_2d,
    "horizontal": horizontal,
    "vertical": vertical,
    "channel": channel,
    "bernoulli": bernoulli,
    "noise": noise,
    "grid": grid,
    "voronoi": voronoi,
}
"""Every mask's function by its name in recipes."""

CONSTANT = frozenset({"mimo", "linear"})
"""The kinds that are the same everywhere; a Mixer uses the others with probability p, falling back to ``linear``."""
