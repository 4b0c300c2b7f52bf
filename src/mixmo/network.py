"""MixMo around any image classifier: M encoders in place of its stem, M heads in place of its classifier.

The stem (first convolution) is replaced *in place* by a module that encodes and mixes. The backbone is fed
the members' images folded into the channel axis, (B, M*C, H, W), so that it sees images of their true size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call

import mixmo.backbones  # noqa: F401  (registers its models with timm)
from mixmo.errors import InputError, one_of
from mixmo.mixing import mix_features
from mixmo.splitting import split_at


class MixingStem(nn.Module):
    """M encoders and the mixing block: (B, M*C, H, W) ↦ M * Σ_i mask_i ⊙ encoder_i(x_i), (B, F, h, w).

    Images (B, C, H, W) are shown to every encoder; plain convolutions are then summed first, so that inference
    costs one of them. ``masks`` is set by :class:`MixMo` around its call of the backbone, since the backbone's
    own forward passes on nothing but images.
    """

    def __init__(self, encoders: Iterable[nn.Module], in_chans: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.in_chans = in_chans
        self.masks: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Encode each member's images and mix the features."""
        if self.masks is not None and len(x) != len(self.masks):
            raise InputError(
                f"masks have shape {tuple(self.masks.shape)}, but the stem was given {len(x)} inputs; each mixture "
                "needs its masks, and the backbone has to show its stem whole images."
            )
        members, same_image = len(self.encoders), x.shape[1] == self.in_chans
        if same_image and self.masks is None and _is_plain(self.encoders[0]):
            return functional_call(self.encoders[0], _summed(self.encoders), (x,))  # type: ignore[no-any-return]
        inputs = [x] * members if same_image else x.split(self.in_chans, 1)
        features = [encoder(image) for encoder, image in zip(self.encoders, inputs, strict=True)]
        return mix_features(features, self.masks)


class MemberHeads(nn.Module):
    """M classifiers of the same features; their logits stand one after the other: (B, M*K)."""

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.channel_axis = 1 if isinstance(self.heads[0], nn.Conv2d) else -1

    def forward(self, x: Tensor) -> Tensor:
        """Apply every head to the features."""
        return torch.cat([head(x) for head in self.heads], self.channel_axis)


class MixMo(nn.Module):
    """A multi-input multi-output network: M subnetworks in one backbone (section 3 of the paper).

    Args:
        backbone: A timm model name (the paper's are ``wide_resnet28_10`` … and ``preact_resnet18_1`` …), or
            a module that maps images (B, C, H, W) to logits (B, K). A module is copied, not changed.
        num_members: M; 1 is the ordinary single network.
        num_classes: K for a timm name (``None`` is its default); a module must have as many outputs.
        stem: Dotted name of the first convolution; needed for a module, known for timm models.
        head: Dotted name of the final classifier; likewise.
        trained: The backbone's weights are trained already (implied by ``pretrained=True``). Encoders then
            start as the trained stem / M and heads as the trained head, so that the network starts out
            as the trained one. Otherwise each member's stem and head are fresh draws of the initial law.
        mix_at: Dotted name of a module, such as the first stage, behind which features are mixed: encoders are then
            copies of all that comes up to it. ``None`` mixes behind the stem, as published.
        **options: More keywords of ``timm.create_model``: ``in_chans``, ``img_size``, ``pretrained``, …

    Attributes:
        encoders: M modules (B, C, H, W) → (B, F, h, w).
        heads: M modules, features → (B, K).
        backbone: The backbone, with the two replaced.

    Raises:
        InputError: if the backbone is unknown, has no single stem or head, or cannot be cut at ``mix_at``, or M < 1.

    Example:
        >>> net = MixMo("wide_resnet10_1", num_members=2, num_classes=10)
        >>> net(torch.zeros(4, 3, 32, 32)).shape                                          # inference
        torch.Size([4, 2, 10])
        >>> net(torch.zeros(4, 2, 3, 32, 32), torch.full((4, 2, 1, 32, 32), 0.5)).shape   # training
        torch.Size([4, 2, 10])
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        num_members: int = 2,
        num_classes: int | None = None,
        stem: str | None = None,
        head: str | None = None,
        trained: bool = False,
        mix_at: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if num_members < 1:
            raise InputError(f"num_members is {num_members}; a network has at least 1 member.")
        if isinstance(backbone, str):
            if num_classes is not None:
                options["num_classes"] = num_classes
            self.backbone = create_backbone(backbone, **options)
            trained = trained or bool(options.get("pretrained"))
        else:
            if options:
                raise InputError(
                    f"{', '.join(options)}: such options are for timm names, but the backbone is a module."
                )
            self.backbone = copy.deepcopy(backbone)
        self.num_members, self.mix_at = num_members, mix_at
        self.stem_name = stem or _known_name(self.backbone, "first_conv", "stem")
        self.head_name = head or _known_name(self.backbone, "classifier", "head")
        if mix_at is not None:
            self.backbone = split_at(self.backbone, mix_at)
            self.stem_name, self.head_name = "stem", f"core.{self.head_name}"
        first = _submodule(self.backbone, self.stem_name, "stem")
        classifier = _submodule(self.backbone, self.head_name, "head")
        self.in_chans = _input_channels(first, self.stem_name)
        self.num_classes = _output_classes(classifier, self.head_name)
        if num_classes not in (None, self.num_classes):
            raise InputError(f"num_classes is {num_classes}, but the backbone's head has {self.num_classes} outputs.")
        encoders = _copies(first, num_members, trained)
        if trained:
            if mix_at is not None:
                raise InputError(
                    "trained weights go with mixing behind the stem: leave out mix_at, or train from scratch."
                )
            _scale_convolutions(encoders, 1 / num_members)
        self.backbone.set_submodule(self.stem_name, MixingStem(encoders, self.in_chans))
        self.backbone.set_submodule(self.head_name, MemberHeads(_copies(classifier, num_members, trained)))

    @property
    def stem(self) -> MixingStem:
        """The module that stands in the backbone's stem."""
        return self.backbone.get_submodule(self.stem_name)  # type: ignore[return-value]

    @property
    def encoders(self) -> nn.ModuleList:
        """The M encoders: copies of the backbone's stem."""
        return self.stem.encoders

    @property
    def heads(self) -> nn.ModuleList:
        """The M classifiers: copies of the backbone's head."""
        return self.backbone.get_submodule(self.head_name).heads  # type: ignore[return-value]

    def encoder_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (F, h, w), what an encoder makes of an image of height × width; masks have this shape.

        Raises:
            InputError: if the stem cannot take that size, or its output is no feature map.

        Example:
            >>> MixMo("preact_resnet18_1", num_classes=10).encoder_shape(64, 64)
            (64, 32, 32)
        """
        encoder = copy.deepcopy(self.encoders[0]).to("meta").eval()  # shapes only, nothing is computed
        try:
            output = encoder(torch.empty(1, self.in_chans, height, width, device="meta"))
        except RuntimeError as error:
            raise InputError(f"the stem cannot take images of {height}×{width}: {error}") from error
        if output.dim() != 4:
            raise InputError(
                f"stem {self.stem_name!r} makes {tuple(output.shape)} of an image; it has to be (B, F, h, w)."
            )
        _, channels, rows, columns = output.shape
        return channels, rows, columns

    def forward(self, inputs: Tensor, masks: Tensor | None = None) -> Tensor:
        """Classify images (every member sees the same one) or mixtures of M inputs.

        Args:
            inputs: Images (B, C, H, W), or one image per member (B, M, C, H, W).
            masks: (B, M, 1 or F, h, w) for inputs of five axes; ``None`` mixes them equally.

        Returns:
            Logits (B, M, K). The ensemble's are their mean over the members.

        Raises:
            InputError: if shapes do not fit.
        """
        if inputs.dim() == 5:
            if inputs.shape[1:3] != (self.num_members, self.in_chans):
                raise InputError(
                    f"inputs have shape {tuple(inputs.shape)}, but this network takes "
                    f"(B, {self.num_members}, {self.in_chans}, H, W)."
                )
            inputs = inputs.flatten(1, 2)
        elif inputs.dim() != 4 or inputs.shape[1] != self.in_chans:
            raise InputError(
                f"images have shape {tuple(inputs.shape)}, but this network takes (B, {self.in_chans}, H, W)."
            )
        elif masks is not None:
            raise InputError("masks go with inputs of five axes, (B, M, C, H, W); images mix equally.")
        stem = self.stem
        stem.masks = masks
        try:
            logits = self.backbone(inputs)
        finally:
            stem.masks = None
        return logits.unflatten(1, (self.num_members, self.num_classes))  # type: ignore[no-any-return]


def create_backbone(name: str, **options: Any) -> nn.Module:
    """Return ``timm.create_model(name, **options)``; refuse unknown names and options in one sentence.

    Raises:
        InputError: if timm has no such model, or the model no such option.

    Example:
        >>> create_backbone("wide_resnet28_20")
        Traceback (most recent call last):
        mixmo.errors.InputError: unknown backbone 'wide_resnet28_20'; did you mean 'wide_resnet28_2' or ...
    """
    if not timm.is_model(name) and "/" not in name:  # hf-hub:… and local-dir:… are timm's own schemes
        one_of(name.split(".")[0], timm.list_models(), "backbone")
    try:
        model: nn.Module = timm.create_model(name, **options)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise InputError(f"backbone {name!r} cannot be built with {options}: {error}") from error
    return model


def fuse(net: MixMo) -> nn.Module:
    """Fold a trained network into the plain backbone: same class, keys and cost; ``net`` stays as it is.

    At inference all members see one image, so the encoders, being linear, sum into one convolution, and
    the mean of the heads' logits is the logits of the mean head: W = Σ_i W_i at the stem, Σ_i W_i / M at
    the head, biases likewise.

    Args:
        net: The network.

    Returns:
        A new module with ``plain(images)`` = ``net(images).mean(1)`` up to rounding.

    Raises:
        InputError: if a stem is no plain convolution (it never is with ``mix_at``).

    Example:
        >>> net = MixMo("wide_resnet10_1", num_members=2, num_classes=10).eval()
        >>> images = torch.randn(4, 3, 32, 32)
        >>> bool(torch.allclose(fuse(net)(images), net(images).mean(1), atol=1e-5))
        True
    """
    if net.mix_at is not None:
        raise InputError(
            f"the encoders reach up to {net.mix_at!r} and are not linear, so that they cannot be summed; deploy the "
            "network as it is, or mix behind the stem (mix_at=None)."
        )
    _check_plain(net.encoders, net.stem_name)
    plain = copy.deepcopy(net.backbone)
    plain.set_submodule(net.stem_name, _sum_of(net.encoders, scale=1.0))
    plain.set_submodule(net.head_name, _sum_of(net.heads, scale=1 / net.num_members))
    return plain


@torch.no_grad()
def _sum_of(modules: nn.ModuleList, scale: float) -> nn.Module:
    """Return one module whose every parameter is ``scale`` times the modules' sum."""
    total = copy.deepcopy(modules[0])
    for name, parameter in _summed(modules).items():
        total.get_parameter(name).copy_(parameter * scale)
    return total


def _summed(modules: nn.ModuleList) -> dict[str, Tensor]:
    """Return the sum of the modules' parameters, by name."""
    names = [name for name, _ in modules[0].named_parameters()]
    return {name: torch.stack([module.get_parameter(name) for module in modules]).sum(0) for name in names}


def _is_plain(encoder: nn.Module) -> bool:
    """Return whether an encoder's output is linear in its own weight and bias."""
    return type(encoder) in (nn.Conv2d, timm.layers.Conv2dSame)


def _check_plain(encoders: nn.ModuleList, name: str) -> None:
    """Refuse stems that cannot be summed."""
    if not _is_plain(encoders[0]):
        raise InputError(
            f"stem {name!r} is a {type(encoders[0]).__name__}; encoders can be summed only where the stem is "
            "a plain convolution."
        )


@torch.no_grad()
def _copies(module: nn.Module, count: int, trained: bool) -> list[nn.Module]:
    """Return ``count`` copies of a module, the further ones drawn afresh unless it is trained.

    A random permutation of independent, identically distributed weights is again such a draw, of whatever
    law the backbone chose (truncated, uniform, …), without building the backbone once per member.
    """
    copies = [copy.deepcopy(module) for _ in range(count)]
    for fresh in copies[1:] if not trained else []:
        for parameter in fresh.parameters():
            order = torch.randperm(parameter.numel()).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return copies


@torch.no_grad()
def _scale_convolutions(encoders: list[nn.Module], factor: float) -> None:
    """Scale trained stems, so that their sum over the members is the trained stem again."""
    _check_plain(nn.ModuleList(encoders), "stem")
    for encoder in encoders:
        for parameter in encoder.parameters():
            parameter.mul_(factor)


def _known_name(backbone: nn.Module, key: str, argument: str) -> str:
    """Return the one name timm's metadata gives for the stem or the head."""
    settings = getattr(backbone, "pretrained_cfg", None) or {}
    name = settings.get(key)
    kind = type(backbone).__name__
    if isinstance(name, list | tuple):
        raise InputError(f"{kind} has {len(name)} {argument}s ({', '.join(name)}); MixMo needs a backbone with one.")
    if not name:
        raise InputError(f"{kind} does not say which module is its {argument}; name it, as in {argument}='…'.")
    return str(name)


def _submodule(backbone: nn.Module, name: str, argument: str) -> nn.Module:
    names = [known for known, _ in backbone.named_modules() if known]
    one_of(name, names, f"{argument} module of {type(backbone).__name__}")
    return backbone.get_submodule(name)


def _input_channels(stem: nn.Module, name: str) -> int:
    for module in stem.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise InputError(f"stem {name!r} is a {type(stem).__name__} without a convolution; MixMo needs one to encode with.")


def _output_classes(head: nn.Module, name: str) -> int:
    if isinstance(head, nn.Linear):
        return head.out_features
    if isinstance(head, nn.Conv2d):
        return head.out_channels
    raise InputError(f"head {name!r} is a {type(head).__name__}; MixMo needs a linear layer or a convolution there.")
