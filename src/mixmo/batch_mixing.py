"""BatchMixer: turn a batch of images and labels into mixtures, targets and a loss.

Each step draws, in this order and from one generator: pairs, augmentations, masks, partners for mixing in pixels, and
pixel masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from mixmo.errors import InputError, explain_errors
from mixmo.masks import FeatureShape
from mixmo.masks.custom import try_masks
from mixmo.mixing import Kind, Mixer, loss_weights, mixed_binary_cross_entropy, mixed_cross_entropy
from mixmo.network import MixMo
from mixmo.pairing import check_input_repetition, count_distinct, pair, pair_eagerly
from mixmo.pixel_mixing import PixelMixer, keep_majority, mix_pixels, shared_targets, visible_share

WHOLE = slice(None)


class MixedBatch(NamedTuple):
    """The mixtures of one training step.

    Attributes:
        inputs: (B, M, C, H, W), the members' images.
        masks: (B, M, 1 or F, h, w), in [0, 1], summing to one over the members.
        targets: (B, M) class numbers, or (B, M, K) probabilities if pixels are mixed or labels are soft or multiple.
        weights: (B, M) loss weights (equation 5 of the paper).
        shared: (B,) whether all members see the same image.
        objective: The loss function; ``None`` is the paper's.
        class_weights: (K,) weights of the classes in the paper's loss; ``None`` is 1 for all.

    Example:
        >>> net = MixMo("wide_resnet10_1", num_members=2, num_classes=10)
        >>> batch = BatchMixer(net, "cut", pixels="cutmix")(torch.zeros(4, 3, 32, 32), torch.arange(4))
        >>> batch.targets.shape, bool(torch.allclose(batch.targets.sum(2), torch.ones(())))  # probabilities
        (torch.Size([4, 2, 10]), True)
        >>> loss = batch.loss(net(batch.inputs, batch.masks))  # a scalar, in nats
    """

    inputs: Tensor
    masks: Tensor
    targets: Tensor
    weights: Tensor
    shared: Tensor
    objective: Objective | None = None
    class_weights: Tensor | None = None

    def loss(self, logits: Tensor) -> Tensor:
        """Return the loss of the members' logits (B, M, K): a scalar, in nats unless the objective says otherwise."""
        if self.objective is not None:
            return self.objective(logits, self)
        return mixed_cross_entropy(logits, self.targets, self.weights, class_weights=self.class_weights)


Objective = Callable[[Tensor, MixedBatch], Tensor]
"""A loss: maps logits (B, M, K) and their batch to a differentiable scalar."""


def smoothed_cross_entropy(logits: Tensor, batch: MixedBatch, label_smoothing: float) -> Tensor:
    """Return the paper's loss (equation 3) with smoothed targets, (1 - ε) y + ε / K."""
    return mixed_cross_entropy(logits, batch.targets, batch.weights, label_smoothing, batch.class_weights)


def summed_binary_cross_entropy(logits: Tensor, batch: MixedBatch, label_smoothing: float) -> Tensor:
    """Return the multi-label loss with smoothed targets, (1 - ε) y + ε / 2."""
    return mixed_binary_cross_entropy(logits, batch.targets, batch.weights, label_smoothing)


class ImageSource(Protocol):
    """The images of a training step.

    ``labels`` are class numbers (N,) of all images, or (N, K) probabilities or zeros and ones; partners are drawn from
    all of them. ``chosen`` (U,) are the indices of the step's distinct images.
    """

    labels: Tensor
    chosen: Tensor

    def copy_pairs(self, pairs: Tensor, part: slice) -> Tensor:
        """Return copies (b, M, C, H, W) of the images ``chosen[pairs[part]]``, for (B, M) pairs."""

    def copy_images(self, indices: Tensor, part: slice) -> Tensor:
        """Return copies (b, M, C, H, W) of the images ``indices[part]``, for (B, M) indices."""


class TensorImages:
    """Images (U * c, C, H, W) used without augmentation: c prepared copies of each of U images."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.chosen = torch.arange(len(labels), device=images.device)
        self.count = len(images) // max(1, len(labels))

    def copy_pairs(self, pairs: Tensor, part: slice) -> Tensor:
        """Return (b, M, C, H, W), using each copy once if there are enough.

        Every image occurs b times in each member's column: member i gets its copies i * b, …, (i + 1) * b - 1.
        """
        if self.count == 1:
            return self.images[pairs[part]]
        order = pairs.argsort(dim=0, stable=True)
        repetition, members = len(pairs) // len(self.chosen), pairs.shape[1]
        occurrence = torch.arange(len(pairs), device=pairs.device)[:, None].expand_as(pairs) % repetition
        number = torch.empty_like(pairs).scatter_(0, order, occurrence)
        number += repetition * torch.arange(members, device=pairs.device)
        return self.images[(pairs * self.count + number % self.count)[part]]

    def copy_images(self, indices: Tensor, part: slice) -> Tensor:
        """Return (b, M, C, H, W), cycling through the copies."""
        number = torch.arange(indices.numel(), device=indices.device).view_as(indices) % self.count
        return self.images[(indices * self.count + number)[part]]


class BatchMixer:
    """Mixes a batch of images and provides its loss (sections 3.2 and 3.3 of the paper).

    Args:
        net: The network, which sets the members, classes and shape of the masks.
        mask: A name in ``mixmo.masks.KINDS``, a custom function as described in :mod:`mixmo.masks`, or a mapping of
            these to probabilities.
        alpha: Concentration of the Dirichlet ratios; 0 is exactly 1/M.
        probability: p, the share of batches with a mask that is not constant.
        root: r of the loss weights.
        batch_repetition: b, the number of times that an image appears in a batch, B = U * b. The paper divides the
            learning rate and the epochs by b.
        input_repetition: rho, the share of mixtures whose members all see one image; a pair is rho at the start and at
            the end of training, linear in between.
        pixels: ``none``, ``mixup``, ``cutmix`` or a :class:`~mixmo.pixel_mixing.PixelMixer`, to mix each input with
            another image of the batch; targets are then weighted by the visible shares.
        label_smoothing: ε of the paper's loss.
        class_weights: K weights of the classes in the loss. If they average 1 over the training images, as those of
            scikit-learn's ``compute_class_weight("balanced", …)`` do, the learning rate need not change. ``None`` is 1
            for all.
        multi_label: Whether an image may have several labels or none: labels are (U, K), 0 or 1, and the loss is
            :func:`~mixmo.mixing.mixed_binary_cross_entropy`.
        loss: A custom loss, a function of logits (B, M, K) and the :class:`MixedBatch`.
        draw_per: ``batch`` (published) or ``sample``: how often the kind of mask and the members' roles are drawn.

    Raises:
        InputError: if an argument is out of range.

    Example:
        >>> net = MixMo("wide_resnet10_1", num_members=2, num_classes=10)
        >>> mixer = BatchMixer(net, "cut", batch_repetition=2, input_repetition=0.5)
        >>> images, labels = torch.zeros(4, 3, 32, 32), torch.arange(4)
        >>> batch = mixer(images, labels, progress=0.25, generator=torch.Generator().manual_seed(0))
        >>> batch.inputs.shape, batch.masks.shape, batch.targets.shape
        (torch.Size([8, 2, 3, 32, 32]), torch.Size([8, 2, 1, 32, 32]), torch.Size([8, 2]))
        >>> batch.loss(net(batch.inputs, batch.masks)).shape
        torch.Size([])
    """

    def __init__(
        self,
        net: MixMo,
        mask: Kind | Mapping[Kind, float] = "cut",
        *,
        alpha: float = 2.0,
        probability: float = 0.5,
        root: float = 3.0,
        batch_repetition: int = 1,
        input_repetition: float | Sequence[float] = 0.0,
        pixels: Literal["none", "mixup", "cutmix"] | PixelMixer | None = None,
        label_smoothing: float = 0.0,
        class_weights: Tensor | Sequence[float] | None = None,
        multi_label: bool = False,
        loss: Objective | None = None,
        draw_per: Literal["batch", "sample"] = "batch",
    ) -> None:
        if not hasattr(net, "encoder_shape"):  # a compiled MixMo has it
            raise InputError(f"net is a {type(net).__name__}; pass the MixMo itself, such as net.module of a wrapper.")
        self.mixer = Mixer(mask, net.num_members, alpha=alpha, probability=probability, draw_per=draw_per, root=root)
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 1.")
        if loss is not None and label_smoothing:
            raise InputError("label_smoothing applies to the built-in loss; a custom loss must smooth targets itself.")
        if loss is not None and class_weights is not None:
            raise InputError("class_weights apply to the built-in loss; a custom loss must weight classes itself.")
        if multi_label and class_weights is not None:
            raise InputError("class_weights are only for single-label images; leave them out with multi_label.")
        if net.num_classes == 1 and not multi_label and loss is None:
            raise InputError("net has one class, for which the loss is always 0; give it two, or set multi_label.")
        self.class_weights = None
        if class_weights is not None:
            with explain_errors(f"class_weights {class_weights!r} are no numbers", TypeError, ValueError):
                self.class_weights = factors = torch.as_tensor(class_weights, dtype=torch.float32)
            if factors.shape != (net.num_classes,) or not bool(((factors > 0) & factors.isfinite()).all()):
                raise InputError(f"class_weights are {class_weights}; they must be {net.num_classes} positive numbers.")
        if loss is None and (multi_label or label_smoothing):
            smoothed = summed_binary_cross_entropy if multi_label else smoothed_cross_entropy
            loss = partial(smoothed, label_smoothing=label_smoothing)
        rhos: list[Any] = [input_repetition] * 2 if isinstance(input_repetition, float | int) else [*input_repetition]
        if len(rhos) != 2 or not all(isinstance(rho, Real) for rho in rhos):
            raise InputError(f"input_repetition is {input_repetition!r}; it is a number, or a pair for start and end.")
        for rho in rhos:
            check_input_repetition(rho, net.num_members)
        if batch_repetition != (whole := int(batch_repetition)):
            raise InputError(f"batch_repetition is {batch_repetition!r}; it is a whole number.")
        count_distinct(batch_repetition, batch_repetition)
        self.net, self.batch_repetition, self.objective = net, whole, loss
        self.input_repetition, self.multi_label = (rhos[0], rhos[1]), multi_label
        self._tried = set[FeatureShape]()
        pixel_mixer = PixelMixer(pixels) if isinstance(pixels, str) else pixels
        self.pixels = None if pixel_mixer is None or pixel_mixer.kind == "none" else pixel_mixer

    def __call__(
        self, images: Tensor, labels: Tensor, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> MixedBatch:
        """Mix a batch on the images' device, without a host sync.

        Args:
            images: (U, C, H, W) floating point, augmented and normalised.
            labels: (U,) class numbers, or (U, K) probabilities; with ``multi_label`` (U, K), 0 or 1.
            progress: Share of training done, in [0, 1], for the schedules of p and rho; p falls to 0 over the last
                twelfth.
            generator: Random generator on the images' device; ``None`` is the device's global one.

        Raises:
            InputError: if shapes or types do not match, progress is not in [0, 1], or a custom mask function breaks
                the conventions of :mod:`mixmo.masks`, which is checked once for each size of images.
        """
        labels = torch.as_tensor(labels, device=images.device)
        self._check(images, labels)
        self._try_functions(self.net.encoder_shape(images.shape[2], images.shape[3]))
        if not 0 <= progress <= 1:
            raise InputError(f"progress is {progress}; it is the share of training done, from 0 to 1.")
        return self.mix(TensorImages(images, labels), generator, float(progress))

    def mix(
        self,
        source: ImageSource,
        generator: torch.Generator | None,
        progress: float = 0.0,
        mask_progress: float | None = None,
        part: slice = WHOLE,
    ) -> MixedBatch:
        """Draw the mixtures of one step and compute a part of them.

        Args:
            source: The images.
            generator: Random generator on the images' device; ``None`` is the device's global one.
            progress: Share of training done, for the schedule of rho.
            mask_progress: The same for the schedule of p; ``None`` is ``progress``.
            part: Which of the B mixtures to compute; draws are made for all of them, so that parts add up to the batch.
        """
        labels, chosen, members = source.labels, source.chosen, self.mixer.num_members
        start, end = self.input_repetition
        rho = start + progress * (end - start)
        draw = pair if start == end else pair_eagerly
        pairs = draw(len(chosen), members, self.batch_repetition, rho, generator, labels.device)
        inputs = source.copy_pairs(pairs, part)
        targets = _as_targets(labels[chosen[pairs[part]]])
        shape = self.net.encoder_shape(inputs.shape[-2], inputs.shape[-1])
        progress = progress if mask_progress is None else mask_progress
        masks, ratios = self.mixer.sample(len(pairs), shape, generator, progress, labels.device)
        masks, weights = masks[part], loss_weights(ratios[part], self.mixer.root)
        shared = (pairs == pairs[:, :1]).all(1)[part]
        if self.pixels is not None:
            partner = torch.randint(len(labels), pairs.shape, generator=generator, device=labels.device)
            size = (inputs.shape[-2], inputs.shape[-1])
            keep = self.pixels.sample(len(pairs), members, size, generator, labels.device)[part]
            if members > 1:
                keep = keep_majority(keep, masks)
            inputs = mix_pixels(inputs, source.copy_images(partner, part), keep)
            share = visible_share(keep, masks)
            targets = shared_targets(targets, _as_targets(labels[partner[part]]), share, self.net.num_classes)
        if self.class_weights is not None and self.class_weights.device != labels.device:  # a host sync, once
            self.class_weights = self.class_weights.to(labels.device)
        return MixedBatch(inputs, masks, targets, weights, shared, self.objective, self.class_weights)

    def _check(self, images: Tensor, labels: Tensor) -> None:
        channels = self.net.in_chans
        if images.dim() != 4 or images.shape[1] != channels or not images.is_floating_point():
            raise InputError(
                f"images have shape {tuple(images.shape)} and type {images.dtype}; BatchMixer takes floating-point "
                f"images (U, {channels}, H, W), as the network does."
            )
        soft = labels.is_floating_point() or self.multi_label
        if labels.shape != ((len(images), self.net.num_classes) if soft else (len(images),)):
            raise InputError(
                f"labels have shape {tuple(labels.shape)} and type {labels.dtype} for {len(images)} images; give "
                f"{len(images)} class numbers, or probabilities ({len(images)}, {self.net.num_classes}); with "
                "multi_label=True, 0 or 1 in this shape."
            )
        if soft and labels.device.type == "cpu" and not bool(((labels >= 0) & (labels <= 1)).all()):
            raise InputError(f"labels range from {labels.min():g} to {labels.max():g}; values of classes are 0 to 1.")
        if soft and not self.multi_label and labels.device.type == "cpu":
            sums = labels.float().sum(1)
            if bool(((sums - 1).abs() > 1e-2).any()):
                raise InputError(
                    f"the labels of an image sum to {sums.min():g} … {sums.max():g}, but probabilities sum to one; for "
                    "images with several labels, set multi_label=True."
                )

    def _try_functions(self, shape: FeatureShape) -> None:
        """Try custom mask functions on the first batch of each size."""
        if shape not in self._tried and self.mixer.num_members > 1:
            for kind in self.mixer.kinds:
                if callable(kind):
                    try_masks(kind, self.mixer.num_members, shape)
            self._tried.add(shape)


def _as_targets(labels: Tensor) -> Tensor:
    """Convert class numbers (B, M) to int64, and values of each class (B, M, K) to floats."""
    return labels.long() if labels.dim() == 2 else labels.float()
