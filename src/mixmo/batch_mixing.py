"""BatchMixer: from a batch of images and labels to mixtures, targets and loss.

A step draws, in this order and from one generator: pairs, copies of the images, masks, partners for mixing in pixels
and their masks. So a step is a function of its generator alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from mixmo.errors import InputError
from mixmo.mixing import Kind, Mixer, loss_weights, mixed_binary_cross_entropy, mixed_cross_entropy
from mixmo.network import MixMo
from mixmo.pairing import check_input_repetition, check_repetition, pair
from mixmo.pixel_mixing import PixelMixer, keep_majority, mix_pixels, shared_targets, visible_share

WHOLE = slice(None)


class MixedBatch(NamedTuple):
    """What one training step consumes.

    Attributes:
        inputs: (B, M, C, H, W), the members' images.
        masks: (B, M, 1 or F, h, w), in [0, 1]; they sum to one over the members.
        targets: (B, M) class numbers, or (B, M, K) probabilities if pixels are mixed or labels are soft or multiple.
        weights: (B, M) loss weights (equation 5 of the paper).
        shared: (B,) whether all members were shown the same image.
        objective: What :meth:`loss` computes of logits and batch; ``None`` is the paper's.
        class_weights: (K,) factors of the losses of the classes; ``None`` is 1 for all.

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
"""Maps logits (B, M, K) and their batch to the loss, a differentiable scalar."""


def smoothed_cross_entropy(logits: Tensor, batch: MixedBatch, label_smoothing: float) -> Tensor:
    """Return the paper's loss (equation 3) with smoothed targets, (1 - ε) y + ε / K."""
    return mixed_cross_entropy(logits, batch.targets, batch.weights, label_smoothing, batch.class_weights)


def summed_binary_cross_entropy(logits: Tensor, batch: MixedBatch, label_smoothing: float) -> Tensor:
    """Return the loss of images with several labels, whose targets are smoothed, (1 - ε) y + ε / 2."""
    return mixed_binary_cross_entropy(logits, batch.targets, batch.weights, label_smoothing)


class ImageSource(Protocol):
    """The images of a training step.

    ``labels`` are class numbers (N,) of all images, or (N, K) probabilities or 0 and 1; partners are drawn from them.
    ``chosen`` (U,) are the places of the step's distinct images among them.
    """

    labels: Tensor
    chosen: Tensor

    def copy_pairs(self, pairs: Tensor, part: slice) -> Tensor:
        """Return (b, M, C, H, W): a copy of ``chosen[pairs]`` for each position of a part of the (B, M) pairs."""

    def copy_places(self, places: Tensor, part: slice) -> Tensor:
        """Return (b, M, C, H, W): a copy of the image at each place of a part of the (B, M) places."""


class GivenImages:
    """Images (U * c, C, H, W) as they are: c copies of each of U images that a Dataset has prepared, or one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.chosen = torch.arange(len(labels), device=images.device)
        self.count = len(images) // max(1, len(labels))

    def copy_pairs(self, pairs: Tensor, part: slice) -> Tensor:
        """Return (b, M, C, H, W): no copy is used twice if there are enough.

        In each member's column of the pairs every image occurs b times: the first member gets its first b copies, the
        next member the next b.
        """
        if self.count == 1:
            return self.images[pairs[part]]
        order = pairs.argsort(dim=0, stable=True)
        repetition, members = len(pairs) // len(self.chosen), pairs.shape[1]
        occurrence = torch.arange(len(pairs), device=pairs.device)[:, None].expand_as(pairs) % repetition
        number = torch.empty_like(pairs).scatter_(0, order, occurrence)
        number += repetition * torch.arange(members, device=pairs.device)
        return self.images[(pairs * self.count + number % self.count)[part]]

    def copy_places(self, places: Tensor, part: slice) -> Tensor:
        """Return (b, M, C, H, W): the images at these places, cycling through their copies."""
        number = torch.arange(places.numel(), device=places.device).view_as(places) % self.count
        return self.images[(places * self.count + number)[part]]


class BatchMixer:
    """Makes mixtures of a batch of images, and their loss (sections 3.2 and 3.3 of the paper).

    Args:
        net: The network: its members, classes and the shape of its masks.
        mask: A name in ``mixmo.masks.KINDS``, a function of your own as :mod:`mixmo.masks` describes it, or several of
            them with their probabilities.
        alpha: Concentration of the Dirichlet ratios; 0 is exactly 1/M.
        probability: p, share of batches with a mask that is not constant.
        root: r of the loss weights.
        batch_repetition: b, how often an image appears in a batch, B = U * b. The paper divides the learning rate and
            the epochs by b.
        input_repetition: rho, share of mixtures whose members all see one image; two numbers are rho at the start and
            at the end of training, linear in between.
        pixels: ``none``, ``mixup``, ``cutmix`` or a :class:`~mixmo.pixel_mixing.PixelMixer`, which mixes each input
            with another image of the batch; targets are then what stays visible of each.
        label_smoothing: ε of the paper's loss.
        class_weights: K factors of the losses of the classes, for rare ones, in the order of the class numbers; if
            they average 1 over the training images, as scikit-learn's ``compute_class_weight("balanced", …)`` do, the
            learning rate can stay. ``None`` is 1 for all.
        multi_label: Whether an image has any number of labels: labels are (U, K), 0 or 1, and the loss is
            :func:`~mixmo.mixing.mixed_binary_cross_entropy`.
        loss: A loss of your own, a function of logits (B, M, K) and the :class:`MixedBatch`.
        draw_per: ``batch``, the published rule, or ``sample``.

    Raises:
        InputError: if an argument is out of its range.

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
        input_repetition: float | tuple[float, float] = 0.0,
        pixels: Literal["none", "mixup", "cutmix"] | PixelMixer | None = None,
        label_smoothing: float = 0.0,
        class_weights: Tensor | Sequence[float] | None = None,
        multi_label: bool = False,
        loss: Objective | None = None,
        draw_per: Literal["batch", "sample"] = "batch",
    ) -> None:
        self.mixer = Mixer(mask, net.num_members, alpha=alpha, probability=probability, draw_per=draw_per, root=root)
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 1.")
        if loss is not None and label_smoothing:
            raise InputError("label_smoothing is part of the paper's loss; a loss of your own smooths targets itself.")
        if loss is not None and class_weights is not None:
            raise InputError("class_weights are part of the paper's loss; a loss of your own weights classes itself.")
        if multi_label and class_weights is not None:
            raise InputError("class_weights are for images of one class each; with multi_label leave them out.")
        self.class_weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        if self.class_weights is not None and (
            self.class_weights.shape != (net.num_classes,) or not bool((self.class_weights > 0).all())
        ):
            raise InputError(f"class_weights are {class_weights}; give {net.num_classes} positive numbers.")
        if loss is None and (multi_label or label_smoothing):
            own = summed_binary_cross_entropy if multi_label else smoothed_cross_entropy
            loss = partial(own, label_smoothing=label_smoothing)
        start, end = input_repetition if isinstance(input_repetition, tuple) else (input_repetition, input_repetition)
        for share in (start, end):
            check_input_repetition(share, net.num_members)
        check_repetition(batch_repetition, batch_repetition)
        self.net, self.batch_repetition, self.objective = net, batch_repetition, loss
        self.input_repetition, self.multi_label = (start, end), multi_label
        mixer = PixelMixer(pixels) if isinstance(pixels, str) else pixels
        self.pixels = None if mixer is None or mixer.kind == "none" else mixer

    def __call__(
        self, images: Tensor, labels: Tensor, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> MixedBatch:
        """Draw the mixtures of one step, on the images' device, without the host waiting for it.

        Args:
            images: (U, C, H, W) floating point, as the network takes them: augmented and normalised.
            labels: (U,) class numbers, or (U, K) probabilities; with ``multi_label`` (U, K), 0 or 1.
            progress: Share of training done, in [0, 1]: p falls to 0 over the last twelfth, and rho follows it.
            generator: Source of every draw, on the images' device; ``None`` is the device's global generator.

        Raises:
            InputError: if shapes or types do not fit.
        """
        self._check(images, labels)
        return self.mix(GivenImages(images, labels), generator, progress)

    def mix(
        self,
        source: ImageSource,
        generator: torch.Generator | None,
        progress: float = 0.0,
        mask_progress: float | None = None,
        part: slice = WHOLE,
    ) -> MixedBatch:
        """Draw the mixtures of one step from a source of images, and make a part of them.

        Args:
            source: The images.
            generator: Source of every draw, on the images' device; ``None`` is the device's global generator.
            progress: Share of training done, which rho follows.
            mask_progress: What p follows; ``None`` is the same.
            part: Which of the B mixtures to make; draws are made for all, so that the parts add up to the whole.
        """
        labels, chosen, members = source.labels, source.chosen, self.mixer.num_members
        start, end = self.input_repetition
        rho = start + progress * (end - start)
        pairs = pair(len(chosen), members, self.batch_repetition, rho, generator, labels.device)
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
            inputs = mix_pixels(inputs, source.copy_places(partner, part), keep)
            share = visible_share(keep, masks)
            targets = shared_targets(targets, _as_targets(labels[partner[part]]), share, self.net.num_classes)
        if self.class_weights is not None and self.class_weights.device != labels.device:  # once: the host waits for it
            self.class_weights = self.class_weights.to(labels.device)
        return MixedBatch(inputs, masks, targets, weights, shared, self.objective, self.class_weights)

    def _check(self, images: Tensor, labels: Tensor) -> None:
        channels = self.net.in_chans
        if images.dim() != 4 or images.shape[1] != channels or not images.is_floating_point():
            raise InputError(
                f"images have shape {tuple(images.shape)} and type {images.dtype}; a BatchMixer takes floating-point "
                f"images (U, {channels}, H, W), as the network does."
            )
        soft = labels.is_floating_point() or self.multi_label
        if labels.shape != ((len(images), self.net.num_classes) if soft else (len(images),)):
            raise InputError(
                f"labels have shape {tuple(labels.shape)} for {len(images)} images; give {len(images)} class "
                f"numbers, or probabilities ({len(images)}, {self.net.num_classes}); with multi_label=True, "
                "0 or 1 in this shape."
            )


def _as_targets(labels: Tensor) -> Tensor:
    """Return class numbers (B, M) as they are, and values for each class (B, M, K) as floats."""
    return labels if labels.dim() == 2 else labels.float()
