"""The catalogue of masks: how members share the positions of a feature map.

All functions have the same signature and work on a batch, on any device::

    masks = function(ratios, shape, generator, roles)

* ``ratios`` (B, M): the requested ratio of each part; rows sum to one.
* ``shape`` (F, h, w): the shape of an encoder's output.
* ``generator``: the random generator, on the device of ``ratios``; ``None`` is torch's global one.
* ``roles`` (M,) or (B, M): a permutation; member i gets the mask of part roles[i], so that part 0, such as the
  rectangle, goes to the member with role 0. ``None`` is the identity.
* returns masks (B, M, 1 or F, h, w), in [0, 1], that sum to one over the members at every position. Masks of rows,
  columns or channels are expanded views.
* raises ``InputError`` if a map has fewer rows, columns, channels or cells than there are members.

The *realised* ratio of a member is the mean of its mask; it may differ from the requested one. ``KINDS`` maps names to
functions. Each docstring describes the distribution of the masks, with kappa_i the requested ratio of part i, and
pictures one: each position shows the member with the largest mask.

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
    function.__name__.replace("_", "-"): function
    for function in (
        mimo, linear, cut, cut_exact, cut_partition, cow, fmix, patchup_hard, patchup_soft, patchup_2d, horizontal,
        vertical, channel, bernoulli, noise, grid, voronoi,
    )
}  # fmt: skip
"""The functions by their names in recipes."""

CONSTANT = frozenset({"mimo", "linear"})
"""The kinds that are the same at every position; a Mixer uses others with probability p, else ``linear``."""
