"""MixMo in one file: mixing ratios, the mixing block, loss weights, and when to use which mask.

One training step of MixMo (Ramé, Sun, Cord, ICCV 2021, arXiv 2103.06132) with M members:

1. draw ratios kappa ~ Dirichlet(alpha, …, alpha) for each sample, and masks that follow them (:class:`Mixer`);
2. mix the members' features, M * Σ_i mask_i ⊙ encoder_i(x_i) (:func:`mix_features`, equation 2);
3. weight each member's loss by how much of its input is in the mixture (:func:`loss_weights`, equation 5);
4. sum the weighted losses (:func:`mixed_cross_entropy`, equation 3).

Towards the end of training binary masks give way to linear ones (:func:`scheduled_probability`), so that
training ends at the rule of inference, where all members see the same image with equal masks.
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

NOTHING = torch.iinfo(torch.int64).min
"""The ``ignore_index`` of cross-entropy: no label can equal it, so that invalid labels raise; torch's default, -100,
would mask them."""


Kind = str | MaskFunction
"""A mask: its name in ``mixmo.masks.KINDS``, or its function."""


class Mix(NamedTuple):
    """One draw of a :class:`Mixer`.

    Attributes:
        masks: (B, M, 1 or F, h, w), in [0, 1], sum to one over the members at every position.
        ratios: (B, M), the realised ratios: each mask's mean. An empty mask has ratio 0.

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
            raise ValueError("it must be a mapping of masks' names, or functions, to probabilities")
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
    """Draws masks and ratios for a whole batch (section 3.2 of the paper), and holds r of the loss weights.

    Per sample kappa ~ Dirichlet(alpha, …, alpha). A kind with a shape (``cut``) is used with probability p, otherwise
    ``linear``; whether, and which member gets the rectangle, is drawn once per batch, or for each sample. Ratios are
    the masks' realised means. This is also the section ``mixer`` of a run's settings.

    Raises:
        InputError: if an argument is out of its range.

    Example:
        >>> mixer = Mixer("cut", num_members=3, probability=1.0)
        >>> mix = mixer.sample(8, shape=(16, 32, 32), generator=torch.Generator().manual_seed(0))
        >>> mix.masks.shape, mix.ratios.shape
        (torch.Size([8, 3, 1, 32, 32]), torch.Size([8, 3]))
        >>> bool(torch.allclose(mix.masks.sum(1), torch.ones(())))
        True
    """

    kind: Annotated[Any, BeforeValidator(_check_kind)] = "cut"
    """A mask of the catalogue (``mixmo.masks.KINDS``: mimo, linear, cut, cow, voronoi, …), a function of your own (in
    Python as :mod:`mixmo.masks` describes it, in a recipe package.module:function of a module in allow_imports), or
    several of them with probabilities that sum to one: ``{"cut": 0.5, "cow": 0.5}``.
    """
    num_members: Annotated[Count, FromElsewhere()] = 2
    """M, the number of members; with M = 1 every mask is one everywhere."""
    alpha: Annotated[Number, Field(ge=0, le=1e6)] = 2.0
    """Concentration of the Dirichlet ratios; the larger, the closer to 1/M. 0 means exactly 1/M."""
    probability: Share = 0.5
    """p, the share of batches with a mask that is not constant."""
    draw_per: Literal["batch", "sample"] = "batch"
    """Draw the kind of mask, and the members' parts, for each batch (published) or for each sample."""
    root: Annotated[Number, Field(ge=0.01, le=1e6)] = 3.0
    """r of the loss weights (:func:`loss_weights`)."""
    progress: Literal["steps", "epochs"] = "steps"
    """What p follows at the end of training: the share of steps done, or of epochs counted from 1 (published; the
    whole last epoch then has p = 0).
    """

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if isinstance(kind, str) and ":" not in kind:
                one_of(kind, KINDS, "mixer.kind")
        if not abs(sum(self.kinds.values()) - 1) < 1e-6 or min(self.kinds.values()) < 0:
            raise InputError(f"mixer.kind is {dict(self.kinds)}; its probabilities are 0 or more and sum to 1.")

    @property
    def kinds(self) -> Mapping[Kind, float]:
        """The kinds with their probabilities."""
        return self.kind if isinstance(self.kind, Mapping) else {self.kind: 1.0}

    def sample(
        self,
        batch_size: int,
        shape: FeatureShape,
        generator: torch.Generator | None = None,
        progress: float = 0.0,
        device: torch.device | str | None = None,
    ) -> Mix:
        """Draw the masks and ratios of one batch, on the device, without a host sync.

        Args:
            batch_size: B, the number of mixtures.
            shape: (F, h, w), the encoders' output shape (``net.encoder_shape(H, W)``).
            generator: Source of every draw; ``None`` is the device's global generator.
            progress: Share of training done, in [0, 1] (:func:`scheduled_probability`).
            device: Where to draw; ``None`` is the generator's device, or the CPU without one.

        Returns:
            A :class:`Mix`: masks (B, M, 1 or F, h, w) and realised ratios (B, M), both float32.

        Raises:
            InputError: if a kind cannot share a map of this size among that many members, or the generator is on
                another device.
        """
        device = drawing_device(generator, device)
        has_autocast = torch.amp.is_autocast_available(device.type)
        # Matrix products in bfloat16 would move masks' outlines.
        with torch.autocast(device.type, enabled=False) if has_autocast else nullcontext():
            ratios = self._sample_ratios(batch_size, generator, device)
            if self.num_members == 1:
                return Mix(linear(ratios, shape), ratios)
            per_sample = self.draw_per == "sample"

            def uniform() -> Tensor:  # `if` on a device's value would make the host wait, so arithmetic chooses
                size = (batch_size, 1, 1, 1, 1) if per_sample else ()
                return torch.rand(size, generator=generator, device=device)

            members = (batch_size, self.num_members) if per_sample else (self.num_members,)
            roles = torch.rand(members, generator=generator, device=device).argsort()
            masks = self._draw(uniform(), ratios, shape, generator, roles)
            if not CONSTANT.issuperset(self.kinds):
                linearly = uniform().ge(scheduled_probability(self.probability, progress)).float()
                masks = masks.lerp(ratios[:, :, None, None, None], linearly)
            return Mix(masks, masks.mean((2, 3, 4)))

    def _sample_ratios(self, batch_size: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        size = (batch_size, self.num_members)
        if self.alpha == 0 or self.num_members == 1:
            return torch.full(size, 1 / self.num_members, device=device)
        # torch.distributions.Dirichlet draws the same but takes no generator.
        return torch._sample_dirichlet(torch.full(size, float(self.alpha), device=device), generator)

    def _draw(
        self, uniform: Tensor, ratios: Tensor, shape: FeatureShape, generator: torch.Generator | None, roles: Tensor
    ) -> Tensor:
        """Return masks of the kinds that ``uniform`` chooses."""
        drawn, below = [], 0.0
        for kind, probability in self.kinds.items():
            function = kind if callable(kind) else KINDS[one_of(kind, KINDS, "mixer.kind")]
            drawn.append((below, function(ratios, shape, generator, roles)))
            below += probability
        chosen = drawn[0][1]
        for start, masks in drawn[1:]:
            chosen = torch.where(uniform >= start, masks, chosen)
        return chosen


def scheduled_probability(probability: float, progress: float) -> float:
    """Return p at a point t of training: p for t < 11/12, then 12 * p * (1 - t), which falls to 0.

    The published runs take t = epoch / epochs with epochs counted from 1: of 300 epochs the 275th still has p = 0.5,
    the 276th 0.48, the last 0.

    Example:
        >>> [round(scheduled_probability(0.5, epoch / 300), 2) for epoch in (1, 275, 276, 300)]
        [0.5, 0.5, 0.48, 0.0]
    """
    return probability * min(1.0, 12 * (1 - progress))


def mix_features(features: Sequence[Tensor], masks: Tensor | None) -> Tensor:
    """Mix M feature maps (B, F, h, w) to one: M * Σ_i mask_i ⊙ features_i (equation 2 of the paper).

    The factor M keeps the scale of a plain sum, which is what equal masks (``None``) give. Masks are
    (B, M, 1 or F, h, w); the result has the features' type.

    Raises:
        InputError: if the masks' shape does not fit the features.

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
    # Masks are laid out as the features are, since products that broadcast over innermost channels crawl on a CPU.
    parts = [
        feature * torch.empty_like(feature).copy_(mask)
        for feature, mask in zip(features, scaled.unbind(1), strict=True)
    ]
    return functools.reduce(torch.add, parts)


def check_masks(masks: Tensor, members: int, features: Sequence[int]) -> None:
    """Refuse masks that do not fit M feature maps of shape (B, F, h, w)."""
    batch, channels, height, width = features
    if masks.shape not in {(batch, members, c, height, width) for c in (1, channels)}:
        raise InputError(
            f"masks have shape {tuple(masks.shape)}, but the encoders' output asks for "
            f"({batch}, {members}, 1 or {channels}, {height}, {width})."
        )


def loss_weights(ratios: Tensor, root: float = 3.0) -> Tensor:
    """Return the loss weights w_i = M * kappa_i^(1/r) / Σ_j kappa_j^(1/r) (equation 5 of the paper).

    The member whose input dominates the mixture gets the larger weight; r softens the contrast. Member
    weights have mean one, and a ratio of 0 has weight 0.

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
        raise InputError(f"root is {root}; the weight root r is a positive number, 3 in the paper.")
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

    With class weights c, CE is torch's ``cross_entropy(…, weight=c)``: -Σ_k c_k y_k log p_k. It is not divided by the
    sum of the weights, so they set the scale of the loss.

    Args:
        logits: (B, M, K).
        targets: (B, M) class numbers, or (B, M, K) probabilities (from mixing in pixels).
        weights: (B, M) from :func:`loss_weights`; ``None`` means 1 for every member.
        label_smoothing: ε; targets become (1 - ε) y + ε / K.
        class_weights: (K,), c, on the logits' device; ``None`` means 1 for every class.

    Returns:
        A float32 scalar: summed over members, averaged over the batch, in nats.

    Raises:
        InputError: if shapes do not fit, or (checked on the CPU only) a class number is out of range.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
        >>> mixed_cross_entropy(logits, torch.tensor([[0, 1]])).item()
        0.8200...
    """
    batch, members, classes = logits.shape
    expected = (batch, members, classes) if targets.is_floating_point() else (batch, members)
    if targets.shape != expected:
        raise InputError(
            f"targets have shape {tuple(targets.shape)}, but logits {tuple(logits.shape)} ask for "
            f"{(batch, members)} class numbers or {(batch, members, classes)} probabilities."
        )
    if class_weights is not None and class_weights.shape != (classes,):
        raise InputError(f"class_weights have shape {tuple(class_weights.shape)}, but there are {classes} classes.")
    flat_logits, flat_targets = logits.float().flatten(0, 1), targets.flatten(0, 1)
    try:
        losses = F.cross_entropy(
            flat_logits,
            flat_targets,
            weight=class_weights,
            reduction="none",
            ignore_index=NOTHING,
            label_smoothing=label_smoothing,
        )
    except IndexError as error:
        message = str(error).rstrip(".")
        raise InputError(f"{message}: class numbers of {classes} classes range from 0 to {classes - 1}.") from error
    return _sum_members(losses.view(batch, members), weights)


def mixed_binary_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the loss of images with any number of labels: mean over the batch of Σ_i w_i * Σ_k BCE(logits_ik, y_ik).

    It is equation 3 of the paper with binary cross-entropy in place of cross-entropy, summed over the K classes: the
    negative log-likelihood of all labels of an image. The gradient of a logit is as large as that of cross-entropy,
    so that learning rates carry over; the mean over classes would need K times the rate (of SGD).

    Args:
        logits: (B, M, K).
        targets: (B, M, K), 1 where a class is present and 0 where not, or between where pixels were mixed.
        weights: (B, M) from :func:`loss_weights`; ``None`` means 1 for every member.
        label_smoothing: ε; targets become (1 - ε) y + ε / 2.

    Returns:
        A float32 scalar: summed over classes and members, averaged over the batch, in nats.

    Raises:
        InputError: if shapes do not fit.

    Example:
        >>> logits, targets = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
        >>> mixed_binary_cross_entropy(logits, targets).item()  # 3 log 2 + log(1 + e⁻²)
        2.206...
    """
    if targets.shape != logits.shape:
        raise InputError(
            f"targets have shape {tuple(targets.shape)}, but those of several labels are 0 or 1 for each of the logits "
            f"{tuple(logits.shape)}."
        )
    smoothed = (1 - label_smoothing) * targets.float() + label_smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits.float(), smoothed, reduction="none").sum(2)
    return _sum_members(losses, weights)


def _sum_members(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean over the batch of the weighted sum of the members' losses (B, M)."""
    if weights is not None:
        if weights.shape != losses.shape:
            raise InputError(
                f"weights have shape {tuple(weights.shape)}, but the members' losses {tuple(losses.shape)}."
            )
        losses = losses * weights
    return losses.sum(1).mean()
