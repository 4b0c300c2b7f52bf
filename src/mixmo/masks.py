"""The catalogue of masks: how the members share the positions of a feature map.

Every function has one signature, works on the whole batch at once and on any device::

    masks = function(ratios, shape, generator, roles)

* ``ratios`` (B, M): the requested share of each member, rows sum to one.
* ``shape`` (F, h, w): channels, height and width of the encoders' output.
* ``generator``: where random positions come from, on the device of ``ratios``; ``None`` is torch's own.
* ``roles`` (M,): a permutation for kinds whose parts differ: member i gets the mask of part roles[i], so that
  part 0, the rectangle, falls to the member with role 0. ``None`` leaves them in order.
* returns masks (B, M, 1 or F, h, w), in [0, 1], that sum to one over the members everywhere.

What a mask really gives to a member, its *realised* ratio, is its mean; it may differ from the request.
``KINDS`` maps each name to its function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FeatureShape = tuple[int, int, int]
MaskFunction = Callable[[Tensor, FeatureShape, torch.Generator | None, Tensor | None], Tensor]


def mimo(
    ratios: Tensor, shape: FeatureShape, generator: torch.Generator | None = None, roles: Tensor | None = None
) -> Tensor:
    """Give every member 1/M everywhere, whatever the request (Havasi et al. 2021).

    Args:
        ratios: (B, M); only its shape, type and device are read.
        shape: (F, h, w) of the encoders' output.
        generator: not used.
        roles: not used; all parts are alike.

    Returns:
        Masks (B, M, 1, h, w).

    Example:
        >>> mimo(torch.tensor([[0.2, 0.8]]), (16, 1, 2)).flatten().tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    return linear(torch.full_like(ratios, 1 / ratios.shape[1]), shape)


def linear(
    ratios: Tensor, shape: FeatureShape, generator: torch.Generator | None = None, roles: Tensor | None = None
) -> Tensor:
    """Give member i its ratio everywhere: mask_i = kappa_i (Linear-MixMo, section 3.2 of the paper).

    Args:
        ratios: (B, M), rows sum to one.
        shape: (F, h, w) of the encoders' output.
        generator: not used.
        roles: not used; all parts are alike.

    Returns:
        Masks (B, M, 1, h, w), a view of ``ratios`` that takes no memory of its own.

    Example:
        >>> linear(torch.tensor([[0.25, 0.75]]), (16, 1, 2)).flatten().tolist()
        [0.25, 0.25, 0.75, 0.75]
    """
    _, height, width = shape
    return ratios[:, :, None, None, None].expand(-1, -1, 1, height, width)


def cut(
    ratios: Tensor, shape: FeatureShape, generator: torch.Generator | None = None, roles: Tensor | None = None
) -> Tensor:
    """Give the first member a rectangle, the others the rest (Cut-MixMo, section 3.2 of the paper).

    As in CutMix the sides are floor(size * sqrt(kappa_1)), the centre is uniform on the grid and the
    corners, centre ± side // 2, are clipped to the map. So the realised share is smaller than kappa_1:
    0.306 on average, not 0.5, for kappa ~ Beta(2, 2) at 32×32; and on small maps a rectangle can be empty.
    Outside it the other members are mixed linearly in proportion to their ratios.

    Args:
        ratios: (B, M), rows sum to one.
        shape: (F, h, w) of the encoders' output.
        generator: draws the centres.
        roles: (M,), which member gets which part.

    Returns:
        Masks (B, M, 1, h, w); 0 or 1 when M = 2.

    Example:
        >>> mask = cut(torch.full((1000, 2), 0.5), (16, 8, 8), torch.Generator().manual_seed(0))
        >>> mask[:, 0].mean((1, 2, 3)).max()   # sides floor(8 * sqrt(0.5)) = 5 lose a row and a column
        tensor(0.2500)
    """
    _, height, width = shape
    root = ratios[:, 0].sqrt()
    top, bottom = _clipped_span(root, height, generator)
    left, right = _clipped_span(root, width, generator)
    return _rectangle_masks(ratios, roles, _span_mask(top, bottom, height), _span_mask(left, right, width))


def cut_exact(
    ratios: Tensor, shape: FeatureShape, generator: torch.Generator | None = None, roles: Tensor | None = None
) -> Tensor:
    """Give the first member a rectangle of area kappa_1 up to rounding, wholly inside the map.

    The height is round(h * sqrt(kappa_1)), or more where the width would not suffice, the width
    round(area / height); the position is uniform among those that fit. The realised ratio is within
    1 / (2w) of the requested one, and nothing is lost at the border as in :func:`cut`.

    Args:
        ratios: (B, M), rows sum to one.
        shape: (F, h, w) of the encoders' output.
        generator: draws the positions.
        roles: (M,), which member gets which part.

    Returns:
        Masks (B, M, 1, h, w); 0 or 1 when M = 2.

    Example:
        >>> mask = cut_exact(torch.tensor([[0.25, 0.75]]), (16, 8, 8), torch.Generator().manual_seed(0))
        >>> mask[0, :, 0].mean((1, 2)).tolist()
        [0.25, 0.75]
    """
    _, height, width = shape
    area = ratios[:, 0] * (height * width)
    rows = (height * ratios[:, 0].sqrt()).round().maximum((area / width).ceil()).clamp(min=1)
    columns = (area / rows).round()
    top, left = _fitting_start(rows, height, generator), _fitting_start(columns, width, generator)
    return _rectangle_masks(ratios, roles, _span_mask(top, top + rows, height), _span_mask(left, left + columns, width))


def _clipped_span(root: Tensor, size: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return start and end (B,) of CutMix's clipped side along an axis of ``size`` cells."""
    half = (size * root).floor().div(2, rounding_mode="floor")
    centre = torch.randint(size, root.shape, generator=generator, device=root.device)
    return centre - half, centre + half


def _fitting_start(length: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """Return a start (B,) uniform among those that keep ``length`` cells inside ``size``."""
    uniform = torch.rand(length.shape, generator=generator, device=length.device)
    return (uniform * (size - length + 1)).floor().clamp(max=size - length)


def _span_mask(start: Tensor, end: Tensor, size: int) -> Tensor:
    """Return (B, size), 1 where start <= position < end, else 0; clips by itself."""
    position = torch.arange(size, device=start.device)
    return ((position >= start[:, None]) & (position < end[:, None])).float()


def _rectangle_masks(ratios: Tensor, roles: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
    """Return masks (B, M, 1, h, w): part 0 inside rows × columns, the others outside."""
    if ratios.shape[1] == 1:  # nobody to share with
        return ratios.new_ones(len(ratios), 1, 1, rows.shape[1], columns.shape[1])
    others = ratios[:, 1:]
    rest = others.sum(1, keepdim=True)
    share = torch.where(rest > 0, others / rest, 1 / others.shape[1])  # kappa_1 = 1 leaves 0 / 0
    inside = torch.cat([torch.ones_like(rest), torch.zeros_like(others)], 1)
    outside = torch.cat([torch.zeros_like(rest), share], 1)
    if roles is not None:  # permute M numbers for each sample rather than whole masks
        inside, outside = inside.index_select(1, roles), outside.index_select(1, roles)
    rectangle = (rows[:, :, None] * columns[:, None, :]).flatten(1)[:, None]
    # Outside + rectangle * (inside - outside): exact where these are 0 and 1, and a third of where()'s time.
    masks = torch.addcmul(outside[:, :, None], rectangle, (inside - outside)[:, :, None])
    return masks.view(*ratios.shape, 1, rows.shape[1], columns.shape[1])


KINDS: dict[str, MaskFunction] = {
    "mimo": mimo,
    "linear": linear,
    "cut": cut,
    "cut-exact": cut_exact,
}
"""Every mask's function by its name in recipes."""

BINARY = frozenset({"cut", "cut-exact"})
"""The kinds a Mixer uses with probability p per batch, falling back to ``linear``."""
