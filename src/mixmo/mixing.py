"""MixMo's method: mixing ratios, the mixing block, loss weights and the mask schedule.

One training step of MixMo (Ramé, Sun, Cord, ICCV 2021, arXiv 2103.06132) with M members:

1. draw ratios kappa ~ Dirichlet(alpha, …, alpha) for each sample, and masks that follow them (:class:`Mixer`);
2. mix the members' features, M * Σ_i mask_i ⊙ encoder_i(x_i) (:func:`mix_features`, equation 2);
3. weight each member's loss by the share of its input in the mixture (:func:`loss_weights`, equation 5);
4. sum the weighted losses (:func:`mixed_cross_entropy`, equation 3).

Towards the end of training linear masks replace binary ones (:func:`scheduled_probability`), which is closer to
inference, where all members see the same image with equal masks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor

from mixmo.errors import InputError, one_of
from mixmo.masks import CONSTANT, KINDS, FeatureShape, MaskFunction
from mixmo.masks.constant import linear
from mixmo.seeding import drawing_device
from mixmo.validation import Count, FromElsewhere, Number, Share, settings_class

IGNORE_INDEX = torch.iinfo(torch.int64).min
"""A label that cannot occur, so that invalid labels raise an error; torch's default, -100, would be ignored."""

Kind = str | MaskFunction
"""A mask: its name in ``mixmo.masks.KINDS``, or its function."""


class Mix(NamedTuple):
    """One draw of a :class:`Mixer`.

    Attributes:
        masks: (B, M, 1 or F, h, w), in [0, 1], summing to one over the members at every position.
        ratios: (B, M), the realised ratios: the means of the masks.

    Example:
        >>> mix = Mixer("voronoi", probability=1.0).sample(4, (16, 8, 8), torch.Generator().manual_seed(0))
        >>> bool(torch.allclose(mix.masks.mean((2, 3, 4)), mix.ratios))
        True
    """

    masks: Tensor
    ratios: Tensor


def _check_kind(kind: Any) -> Any:
    if isinstance(kind, Mapping):
        if not all(isinstance(name, str) or callable(name) for name in kind):
            raise ValueError("it must map names of masks, or functions, to probabilities")
        return {name: _check_share(name, share) for name, share in kind.items()}
    if isinstance(kind, str):
        return str.__str__(kind)
    if callable(kind):
        return kind
    raise ValueError("it must be the name of a mask, a function, or a mapping of these to probabilities")


def _check_share(kind: Any, share: Any) -> float:
    try:
        return float("x" if isinstance(share, bool) else share)
    except (TypeError, ValueError):
        raise InputError(f"mixer.kind.{kind} is {share!r}; it must be a number.") from None


@settings_class("mixer", frozen=True)
class Mixer:
    """Draws the masks and ratios of a batch (section 3.2 of the paper).

    For each sample kappa ~ Dirichlet(alpha, …, alpha). A kind that is not constant (``cut``) is used with probability
    p, else ``linear``; this choice, and which member gets the rectangle, are drawn per batch or per sample. This is
    also the section ``mixer`` of a run's settings.

    Raises:
        InputError: if an argument is out of range.

    Example:
        >>> mixer = Mixer("cut", num_members=3, probability=1.0)
        >>> mix = mixer.sample(8, shape=(16, 32, 32), generator=torch.Generator().manual_seed(0))
        >>> mix.masks.shape, mix.ratios.shape
        (torch.Size([8, 3, 1, 32, 32]), torch.Size([8, 3]))
        >>> bool(torch.allclose(mix.masks.sum(1), torch.ones(())))
        True
    """

    kind: Annotated[Any, BeforeValidator(_check_kind)] = "cut"
    """A mask's name (in ``mixmo.masks.KINDS``: mimo, linear, cut, cow, voronoi, …), a custom function (see
    :mod:`mixmo.masks`; in a recipe package.module:function, with the module in allow_imports), or a mapping of these to
    probabilities that sum to one: ``{"cut": 0.5, "cow": 0.5}``.
    """
    num_members: Annotated[Count, FromElsewhere()] = 2
    """M, the number of members; with M = 1 masks are 1 everywhere."""
    alpha: Annotated[Number, Field(ge=0, le=1e6)] = 2.0
    """Concentration of the Dirichlet ratios; large values are close to 1/M, and 0 is exactly 1/M."""
    probability: Share = 0.5
    """p, the share of batches with a mask that is not constant."""
    draw_per: Literal["batch", "sample"] = "batch"
    """Whether the kind of mask and the members' roles are drawn for each batch (published) or each sample."""
    root: Annotated[Number, Field(ge=0.01, le=1e6)] = 3.0
    """r of the loss weights (:func:`loss_weights`)."""
    progress: Literal["steps", "epochs"] = "steps"
    """Progress for the schedule of p: the share of steps done, or of epochs counted from 1 (published; p is then 0 in
    the whole last epoch).
    """

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if isinstance(kind, str) and ":" not in kind:
                one_of(kind, KINDS, "mixer.kind")
        if not abs(sum(self.kinds.values()) - 1) < 1e-6 or min(self.kinds.values()) < 0:
            raise InputError(f"mixer.kind is {dict(self.kinds)}; its probabilities must be at least 0 and sum to 1.")

    @property
    def kinds(self) -> Mapping[Kind, float]:
        """The kinds and their probabilities."""
        return self.kind if isinstance(self.kind, Mapping) else {self.kind: 1.0}

    def sample(
        self,
        batch_size: int,
        shape: FeatureShape,
        generator: torch.Generator | None = None,
        progress: float = 0.0,
        device: torch.device | str | None = None,
    ) -> Mix:
        """Draw the masks and ratios of one batch, without a host sync.

        Args:
            batch_size: B, the number of mixtures.
            shape: (F, h, w), the shape of an encoder's output (``net.encoder_shape(H, W)``).
            generator: Random generator; ``None`` is the device's global one.
            progress: Share of training done, in [0, 1] (:func:`scheduled_probability`).
            device: Where to draw; ``None`` is the generator's device, or the CPU.

        Returns:
            A :class:`Mix`: masks (B, M, 1 or F, h, w) and realised ratios (B, M), both float32.

        Raises:
            InputError: if the map is too small for a kind with M members, or the generator is on another device.
        """
        device = drawing_device(generator, device)
        has_autocast = torch.amp.is_autocast_available(device.type)
        # Matrix products in bfloat16 would change the masks.
        with torch.autocast(device.type, enabled=False) if has_autocast else nullcontext():
            ratios = self._sample_ratios(batch_size, generator, device)
            if self.num_members == 1:
                return Mix(linear(ratios, shape), ratios)
            per_sample = self.draw_per == "sample"

            def uniform() -> Tensor:  # choices are made arithmetically, since `if` on a device's value is a host sync
                size = (batch_size, 1, 1, 1, 1) if per_sample else ()
                return torch.rand(size, generator=generator, dtype=torch.float32, device=device)

            members = (batch_size, self.num_members) if per_sample else (self.num_members,)
            roles = torch.rand(members, generator=generator, dtype=torch.float32, device=device).argsort()
            kind = uniform()
            masks = self._sample_masks(kind, ratios, shape, generator, roles)
            if not CONSTANT.issuperset(self.kinds):
                is_linear = uniform().ge(scheduled_probability(self.probability, progress))
                if not CONSTANT.isdisjoint(self.kinds):
                    is_linear &= ~self._is_constant(kind)
                masks = masks.lerp(ratios[:, :, None, None, None], is_linear.float())
            return Mix(masks, masks.mean((2, 3, 4)))

    def _sample_ratios(self, batch_size: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        size = (batch_size, self.num_members)
        if self.alpha == 0 or self.num_members == 1:
            return torch.full(size, 1 / self.num_members, dtype=torch.float32, device=device)
        alpha = torch.full(size, float(self.alpha), dtype=torch.float32, device=device)
        return torch._sample_dirichlet(alpha, generator)  # which torch.distributions.Dirichlet calls without one

    def _sample_masks(
        self, uniform: Tensor, ratios: Tensor, shape: FeatureShape, generator: torch.Generator | None, roles: Tensor
    ) -> Tensor:
        """Draw masks of every kind and choose among them by ``uniform``."""
        result, start = None, 0.0
        for kind, probability in self.kinds.items():
            function = kind if callable(kind) else KINDS[one_of(kind, KINDS, "mixer.kind")]
            masks = function(ratios, shape, generator, roles).float()
            result = masks if result is None else torch.where(uniform >= start, masks, result)
            start += probability
        return result  # type: ignore[return-value]

    def _is_constant(self, uniform: Tensor) -> Tensor:
        """Return whether the kind that ``uniform`` chooses is constant."""
        result, start = torch.zeros_like(uniform, dtype=torch.bool), 0.0
        for kind, probability in self.kinds.items():
            result = torch.where(uniform >= start, kind in CONSTANT, result)
            start += probability
        return result


def scheduled_probability(probability: float, progress: float) -> float:
    """Return p at progress t: p for t < 11/12, then 12 * p * (1 - t), which falls to 0.

    The published runs use t = epoch / epochs with epochs counted from 1: of 300 epochs the 275th still has p = 0.5,
    the 276th 0.48, the last 0.

    Example:
        >>> [round(scheduled_probability(0.5, epoch / 300), 2) for epoch in (1, 275, 276, 300)]
        [0.5, 0.5, 0.48, 0.0]
    """
    return probability * min(1.0, 12 * (1 - progress))


def mix_features(features: Sequence[Tensor], masks: Tensor | None) -> Tensor:
    """Mix M feature maps (B, F, h, w) into one: M * Σ_i mask_i ⊙ features_i (equation 2 of the paper).

    Masks are (B, M, 1 or F, h, w); ``None`` means equal masks, for which this is a plain sum. The result has the
    features' dtype.

    Raises:
        InputError: if the masks' shape does not match the features.

    Example:
        >>> a, b = torch.full((1, 1, 1, 2), 1.0), torch.full((1, 1, 1, 2), 5.0)
        >>> mix_features([a, b], None).flatten().tolist()
        [6.0, 6.0]
        >>> mix_features([a, b], torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 2, 1, 1, 2)).flatten().tolist()
        [2.0, 10.0]
    """
    members = len(features)
    if masks is None:
        return functools.reduce(torch.add, features)
    check_masks(masks, members, features[0].shape)
    scaled = (members * masks).to(features[0].dtype)
    # Masks are copied to the features' memory layout: products that broadcast over the innermost axis are slow on CPUs.
    parts = [
        feature * torch.empty_like(feature).copy_(mask)
        for feature, mask in zip(features, scaled.unbind(1), strict=True)
    ]
    return functools.reduce(torch.add, parts)


def check_masks(masks: Tensor, members: int, features: Sequence[int]) -> None:
    """Refuse masks that do not match M feature maps of shape (B, F, h, w)."""
    batch, channels, height, width = features
    if masks.shape not in {(batch, members, c, height, width) for c in (1, channels)}:
        raise InputError(
            f"masks have shape {tuple(masks.shape)}, but the encoders' output requires "
            f"({batch}, {members}, 1 or {channels}, {height}, {width})."
        )


def loss_weights(ratios: Tensor, root: float = 3.0) -> Tensor:
    """Return the loss weights w_i = M * kappa_i^(1/r) / Σ_j kappa_j^(1/r) (equation 5 of the paper).

    Members with larger ratios get larger weights; a larger r makes weights more equal. The weights' mean over the
    members is 1, and a ratio of 0 has weight 0.

    Args:
        ratios: (B, M), the realised ratios; rows sum to one.
        root: r > 0.

    Returns:
        Weights (B, M).

    Raises:
        InputError: if ``root`` is not positive.

    Example:
        >>> loss_weights(torch.tensor([[0.25, 0.75], [0.0, 1.0]])).tolist()
        [[0.8189..., 1.1810...], [0.0, 2.0]]
    """
    if not root > 0:
        raise InputError(f"root is {root}; r must be positive (3 in the paper).")
    powers = ratios ** (1 / root)
    return ratios.shape[1] * powers / powers.sum(1, keepdim=True)


def mixed_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the loss: mean over the batch of Σ_i w_i * CE(logits_i, y_i) (equation 3 of the paper).

    With class weights c, CE is -Σ_k c_k y_k log p_k, as torch's ``cross_entropy(…, weight=c, reduction="none")``: it is
    not divided by the sum of the weights, which therefore scale the loss.

    Args:
        logits: (B, M, K).
        targets: (B, M) class numbers, or (B, M, K) probabilities.
        weights: (B, M) from :func:`loss_weights`; ``None`` means 1 for every member.
        label_smoothing: ε, for targets (1 - ε) y + ε / K.
        class_weights: (K,), c, on the logits' device; ``None`` means 1 for every class.

    Returns:
        A float32 scalar: summed over members, averaged over the batch, in nats.

    Raises:
        InputError: if shapes do not match, or (checked on the CPU only) a class number is out of range.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
        >>> mixed_cross_entropy(logits, torch.tensor([[0, 1]])).item()
        0.8200...
    """
    if logits.dim() != 3:
        raise InputError(
            f"logits have shape {tuple(logits.shape)}; the loss takes the members' logits (B, M, K) of a mixture, "
            "net(batch.inputs, batch.masks)."
        )
    batch, members, classes = logits.shape
    expected = (batch, members, classes) if targets.is_floating_point() else (batch, members)
    if targets.shape != expected:
        raise InputError(
            f"targets have shape {tuple(targets.shape)}, but logits {tuple(logits.shape)} require "
            f"{(batch, members)} class numbers or {(batch, members, classes)} probabilities."
        )
    if class_weights is not None and class_weights.shape != (classes,):
        raise InputError(f"class_weights have shape {tuple(class_weights.shape)}, but there are {classes} classes.")
    flat_logits = logits.float().flatten(0, 1)
    flat_targets = (targets if targets.is_floating_point() else targets.long()).flatten(0, 1)
    try:
        losses = F.cross_entropy(
            flat_logits,
            flat_targets,
            weight=class_weights,
            reduction="none",
            ignore_index=IGNORE_INDEX,
            label_smoothing=label_smoothing,
        )
    except IndexError as error:
        message = str(error).rstrip(".")
        raise InputError(f"{message}: class numbers of {classes} classes range from 0 to {classes - 1}.") from error
    return _sum_members(losses.view(batch, members), weights)


def mixed_binary_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the multi-label loss: mean over the batch of Σ_i w_i * Σ_k BCE(logits_ik, y_ik).

    This is equation 3 of the paper with binary cross-entropy summed over the classes. Gradients of logits are as large
    as those of cross-entropy, so learning rates carry over; with the mean over classes, SGD would need K times the
    rate.

    Args:
        logits: (B, M, K).
        targets: (B, M, K), 1 if a class is present, else 0; values in between if pixels are mixed.
        weights: (B, M) from :func:`loss_weights`; ``None`` means 1 for every member.
        label_smoothing: ε, for targets (1 - ε) y + ε / 2.

    Returns:
        A float32 scalar: summed over classes and members, averaged over the batch, in nats.

    Raises:
        InputError: if shapes do not match.

    Example:
        >>> logits, targets = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
        >>> mixed_binary_cross_entropy(logits, targets).item()  # 3 log 2 + log(1 + e⁻²)
        2.206...
    """
    if targets.shape != logits.shape:
        raise InputError(
            f"targets have shape {tuple(targets.shape)}; multi-label targets must have the shape of the logits, "
            f"{tuple(logits.shape)}."
        )
    smoothed = (1 - label_smoothing) * targets.float() + label_smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits.float(), smoothed, reduction="none").sum(2)
    return _sum_members(losses, weights)


def _sum_members(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean over the batch of the weighted sum of the members' losses (B, M)."""
    if weights is not None:
        if weights.shape != losses.shape:
            raise InputError(f"weights have shape {tuple(weights.shape)}; they must be {tuple(losses.shape)}.")
        losses = losses * weights
    return losses.sum(1).mean()
