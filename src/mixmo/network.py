"""MixMo: M encoders in place of a backbone's stem, M heads in place of its classifier.

The stem (first convolution) is replaced by a module that encodes and mixes (:mod:`mixmo.stem`). The backbone's input
are the members' images folded into the channel axis, (B, M*C, H, W), which leaves their height and width unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from numbers import Integral
from typing import Any

import timm
import torch
from torch import Tensor, nn

import mixmo.models.paper  # noqa: F401  (registers its models with timm)
from mixmo.errors import InputError, explain_errors, one_of
from mixmo.mixing import check_masks
from mixmo.models.copying import copy_module
from mixmo.models.initialization import add_noise, divide_stem, make_member_modules
from mixmo.models.splitting import split_at
from mixmo.models.timm_helpers import DELEGATED, delegate
from mixmo.stem import MemberHeads, MixingStem, check_stem_input, pack_masks, try_mixture


class MixMo(nn.Module):
    """A multi-input multi-output network: M subnetworks in one backbone (section 3 of the paper).

    Args:
        backbone: A timm model name (the paper's are ``wide_resnet28_10`` … and ``preact_resnet18_1`` …), or
            a module that maps images (B, C, H, W) to logits (B, K), which is copied.
        num_members: M; 1 is an ordinary network.
        num_classes: K for a timm name (``None`` is its default); a module must have as many outputs.
        stem: Dotted name of the first convolution, or a list of parallel ones (RepVGG); required for a module, inferred
            for timm models.
        head: Dotted name of the final classifier, or a list (distilled DeiT has two); inferred like ``stem``.
        trained: Whether the backbone's weights are trained (implied by ``pretrained=True`` or a ``checkpoint_path``).
            Encoders are then initialised as the stem / M and heads as the head, so that the network initially equals
            the trained one. Otherwise the members' stems and heads are independent draws: by the backbone's own
            initialisation for a timm name; for a module, from normal distributions with each tensor's mean and
            standard deviation.
        fresh_heads: Whether heads are independent draws although the backbone is trained, because its head is new:
            members with equal encoders and heads would learn the same. ``None`` means so for a timm name with another
            number of classes than its weights were trained for; a module's head counts as trained.
        noise: Breaks the symmetry of equal encoders and heads of a trained backbone, which would otherwise stay equal:
            each gets normal noise of this share of its weights' standard deviation, minus the members' mean noise, so
            that the network still initially equals the trained one.
        mix_at: Dotted name of a module, such as the first stage, after which features are mixed: encoders are then
            copies of everything up to it. ``None`` mixes after the stem, as published.
        **options: Further keywords of ``timm.create_model``: ``in_chans``, ``img_size``, ``pretrained``, …

    Attributes:
        encoders: M modules (B, C, H, W) → (B, F, h, w), or M lists of modules for several stems.
        heads: M modules, features → (B, K), or M lists of modules for several heads.
        backbone: The backbone, with stems and heads replaced.
        stem_names: Dotted names of the stems in ``backbone``.
        head_names: Dotted names of the heads in ``backbone``.

    Raises:
        InputError: if M < 1, or the backbone is unknown, lacks a stem or head, has stems of different sizes, cannot be
            split at ``mix_at``, or (for M > 1) changes its input before its stem.

    Example:
        >>> net = MixMo("wide_resnet10_1", num_members=2, num_classes=10)
        >>> net(torch.zeros(4, 3, 32, 32)).shape                                          # inference: the ensemble
        torch.Size([4, 10])
        >>> net.members(torch.zeros(4, 3, 32, 32)).shape                                  # and each member
        torch.Size([4, 2, 10])
        >>> net(torch.zeros(4, 2, 3, 32, 32), torch.full((4, 2, 1, 32, 32), 0.5)).shape   # training
        torch.Size([4, 2, 10])
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        num_members: int = 2,
        num_classes: int | None = None,
        stem: str | Sequence[str] | None = None,
        head: str | Sequence[str] | None = None,
        trained: bool = False,
        fresh_heads: bool | None = None,
        noise: float = 0.0,
        mix_at: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        _check_arguments(backbone, num_members, num_classes)
        if isinstance(backbone, str):
            if num_classes is not None:
                options["num_classes"] = num_classes
            self.backbone = create_backbone(backbone, **options)
            trained = trained or bool(options.get("pretrained") or options.get("checkpoint_path"))
        else:
            if options:
                raise InputError(f"{', '.join(options)}: these options are for timm names, but backbone is a module.")
            with explain_errors("the backbone cannot be copied", RuntimeError):  # computed tensors, as of weight_norm
                self.backbone = copy_module(backbone)
        if not isinstance(noise, int | float) or not noise >= 0 or (noise and not trained):
            raise InputError(f"noise is {noise!r}; it must be a number of at least 0, and requires a trained backbone.")
        if trained and mix_at is not None:
            raise InputError("mix_at cannot be combined with a trained backbone: leave it out, or train from scratch.")
        self.num_members, self.mix_at = num_members, mix_at
        names = (_names(self.backbone, stem, "first_conv", "stem"), _names(self.backbone, head, "classifier", "head"))
        self.image_size = _image_size(self.backbone, options)
        trained_classes = _timm_config(self.backbone).get("num_classes")
        self.backbone, self.stem_names, self.head_names = _cut_backbone(self.backbone, names, mix_at)
        stems = [_submodule(self.backbone, name, "stem") for name in self.stem_names]
        classifiers = [_submodule(self.backbone, name, "head") for name in self.head_names]
        self.in_chans = _input_channels(stems, self.stem_names, type(self.backbone).__name__)
        channels = options.get("in_chans") or _timm_config(self.backbone).get("input_size", (self.in_chans,))[0]
        if isinstance(backbone, str) and self.in_chans != channels:
            raise InputError(
                f"backbone {backbone!r} rearranges pixels of {channels} channels into {self.in_chans} before its stem; "
                "MixMo needs a stem that takes the images themselves."
            )
        self.num_classes = _output_classes(classifiers, self.head_names)
        if num_classes not in (None, self.num_classes):
            raise InputError(f"num_classes is {num_classes}, but the backbone's head has {self.num_classes} outputs.")
        if fresh_heads is None:
            replaced = isinstance(backbone, str) and trained_classes not in (None, self.num_classes)
            fresh_heads = not trained or (replaced and not options.get("checkpoint_path"))  # such a file has its head
        others: list[tuple[list[nn.Module], list[nn.Module]]] = []
        if isinstance(backbone, str) and (not trained or fresh_heads):
            others = [_draw_parts(backbone, options, names, mix_at) for _ in range(num_members - 1)]
        encoders = make_member_modules(stems, [stems for stems, _ in others], num_members, not trained)
        heads = make_member_modules(classifiers, [heads for _, heads in others], num_members, fresh_heads)
        if trained:
            for members in encoders:
                divide_stem(members, self.stem_names[0])
            for members in [*encoders, *([] if fresh_heads else heads)]:
                add_noise(members, noise)
        for name, members in zip(self.stem_names, encoders, strict=True):
            self.backbone.set_submodule(name, MixingStem(members, self.in_chans))
        for name, members in zip(self.head_names, heads, strict=True):
            self.backbone.set_submodule(name, MemberHeads(members))
        if num_members > 1:
            try_mixture(self.backbone, self.stems, self.image_size)

    def __getattr__(self, name: str) -> Any:
        """Delegate attributes that timm's helpers read to the backbone."""
        return delegate(self.backbone, name) if name in DELEGATED else super().__getattr__(name)

    @property
    def stems(self) -> list[MixingStem]:
        """The modules that replace the backbone's stems, usually one."""
        return [self.backbone.get_submodule(name) for name in self.stem_names]  # type: ignore[misc]

    @property
    def classifiers(self) -> list[MemberHeads]:
        """The modules that replace the backbone's heads, usually one."""
        return [self.backbone.get_submodule(name) for name in self.head_names]  # type: ignore[misc]

    @property
    def encoders(self) -> nn.ModuleList:
        """The M encoders."""
        return _group_by_member([stem.encoders for stem in self.stems])

    @property
    def heads(self) -> nn.ModuleList:
        """The M classifiers."""
        return _group_by_member([classifier.heads for classifier in self.classifiers])

    def encoder_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (F, h, w), the shape of an encoder's output for an image of height × width.

        Raises:
            InputError: if the stem does not accept that size, or its output is not a feature map.

        Example:
            >>> MixMo("preact_resnet18_1", num_classes=10).encoder_shape(64, 64)
            (64, 32, 32)
        """
        return self.stems[0].encoder_shape(height, width)

    def forward(self, inputs: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the ensemble's logits for images, or the members' logits for mixtures.

        Args:
            inputs: Images (B, C, H, W), or an image per member (B, M, C, H, W).
            masks: (B, M, 1 or F, h, w) for mixtures; ``None`` mixes equally.

        Returns:
            Logits (B, K), the mean of the members', for images; (B, M, K) for mixtures.

        Raises:
            InputError: if shapes do not match.
        """
        if inputs.dim() == 5:
            if inputs.shape[1:3] != (self.num_members, self.in_chans):
                raise InputError(
                    f"inputs have shape {tuple(inputs.shape)}, but this network takes "
                    f"(B, {self.num_members}, {self.in_chans}, H, W)."
                )
            return self._forward_mixtures(inputs, masks)
        if masks is not None:
            raise InputError(f"masks need inputs (B, M, C, H, W), but these have shape {tuple(inputs.shape)}.")
        return self.members(inputs).mean(1)

    def members(self, images: Tensor) -> Tensor:
        """Return each member's logits for images, in one pass in which all members see the same image.

        Args:
            images: (B, C, H, W).

        Returns:
            Logits (B, M, K), whose mean over the members is ``net(images)``.

        Raises:
            InputError: if the shape does not match.
        """
        if images.dim() != 4 or images.shape[1] != self.in_chans:
            raise InputError(f"images have shape {tuple(images.shape)}; the network takes (B, {self.in_chans}, H, W).")
        return self._split_members(self.backbone(images))

    def _forward_mixtures(self, inputs: Tensor, masks: Tensor | None) -> Tensor:
        """Return the logits of mixtures (B, M, C, H, W)."""
        single = self.num_members == 1  # its mask is 1 everywhere
        folded = inputs.flatten(1, 2) if masks is None or single else self._pack_masks(inputs, masks)
        if torch.compiler.is_compiling():
            logits = self.backbone(folded)
        else:
            with check_stem_input(folded) if self.num_members > 1 else nullcontext():
                logits = self.backbone(folded)
        return self._split_members(logits)

    def _split_members(self, logits: Any) -> Tensor:
        """Return the backbone's logits (B, M * K) as (B, M, K)."""
        if not isinstance(logits, Tensor):
            raise InputError(
                f"the backbone returns a {type(logits).__name__}; it must return a tensor of logits, also in training: "
                "leave out auxiliary outputs."
            )
        return logits.unflatten(1, (self.num_members, self.num_classes))  # type: ignore[no-any-return]

    def _pack_masks(self, inputs: Tensor, masks: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():  # a compiled stem checks only the number of values
            check_masks(masks, self.num_members, (len(inputs), *self.encoder_shape(*inputs.shape[-2:])))
        return pack_masks(inputs, masks)


def _check_arguments(backbone: object, num_members: object, num_classes: object) -> None:
    """Raise for a backbone or a number of members or classes of the wrong type, or below 1."""
    if not isinstance(backbone, str | nn.Module):
        raise InputError(f"backbone is of type {type(backbone).__name__}; it must be a timm name or a module.")
    counts = {"num_members": num_members} | ({} if num_classes is None else {"num_classes": num_classes})
    for name, count in counts.items():
        if not isinstance(count, Integral) or int(count) < 1:
            raise InputError(f"{name} is {count!r}; it must be an integer of at least 1.")


def create_backbone(name: str, **options: Any) -> nn.Module:
    """Return ``timm.create_model(name, **options)``; raise an InputError for unknown names and options.

    Example:
        >>> create_backbone("wide_resnet28_20")
        Traceback (most recent call last):
        mixmo.errors.InputError: unknown backbone 'wide_resnet28_20'; did you mean 'wide_resnet28_2' or ...
    """
    if not timm.is_model(name) and not {":", "/"} & set(name):  # timm's schemes hf-hub:… and local-dir:…
        one_of(name.split(".")[0], timm.list_models(), "backbone")
    with explain_errors(f"backbone {name!r} cannot be built with {options}"):
        return timm.create_model(name, **options)


Names = tuple[str, ...]


def _group_by_member(parts: list[nn.ModuleList]) -> nn.ModuleList:
    """Return each member's module or, for several stems or heads, list of modules."""
    return parts[0] if len(parts) == 1 else nn.ModuleList(nn.ModuleList(member) for member in zip(*parts, strict=True))


def _cut_backbone(
    backbone: nn.Module, names: tuple[Names, Names], mix_at: str | None
) -> tuple[nn.Module, Names, Names]:
    """Split the backbone at ``mix_at``; return it and the names of its stems and heads."""
    if mix_at is None:
        return backbone, *names
    return split_at(backbone, mix_at), ("stem",), tuple(f"core.{name}" for name in names[1])


def _draw_parts(
    backbone: str, options: dict[str, Any], names: tuple[Names, Names], mix_at: str | None
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return stems and heads of a newly initialised backbone."""
    untrained = options | {"pretrained": False, "checkpoint_path": ""}
    built, stems, heads = _cut_backbone(create_backbone(backbone, **untrained), names, mix_at)
    return [built.get_submodule(name) for name in stems], [built.get_submodule(name) for name in heads]


def _timm_config(backbone: nn.Module) -> dict[str, Any]:
    """Return timm's metadata of a backbone; empty for a user's module."""
    return getattr(backbone, "pretrained_cfg", None) or {}


def _image_size(backbone: nn.Module, options: dict[str, Any]) -> tuple[int, int] | None:
    """Return (H, W) of the images that a backbone is built for, if known."""
    size = options.get("img_size") or _timm_config(backbone).get("input_size", (0,))[1:]
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if len(size) == 2 else None


def _names(backbone: nn.Module, argument_value: str | Sequence[str] | None, key: str, argument: str) -> Names:
    """Return the names of the stems or heads, from the argument or timm's metadata."""
    names = argument_value or _timm_config(backbone).get(key)
    if not names:
        raise InputError(
            f"{type(backbone).__name__} does not say which module is its {argument}; name it, as in "
            f"mixmo.MixMo(module, …, {argument}='…'), or use another backbone."
        )
    return (names,) if isinstance(names, str) else tuple(names)


def _submodule(backbone: nn.Module, name: str, argument: str) -> nn.Module:
    names = (path for path, _ in backbone.named_modules() if path)
    one_of(name, names, f"{argument} module of {type(backbone).__name__}")
    return backbone.get_submodule(name)


def _input_channels(stems: list[nn.Module], names: Names, title: str) -> int:
    """Return C, the stems' number of input channels; refuse stems of different sizes."""
    convolutions = [next((part for part in stem.modules() if isinstance(part, nn.Conv2d)), None) for stem in stems]
    for name, stem, convolution in zip(names, stems, convolutions, strict=True):
        if convolution is None:
            raise InputError(
                f"stem {name!r} of {title} is a {type(stem).__name__} without a convolution, which MixMo needs."
            )
    sizes = {(conv.in_channels, conv.out_channels, conv.stride) for conv in convolutions if conv is not None}
    if len(sizes) > 1:
        raise InputError(
            f"the backbone has {len(stems)} stems ({', '.join(names)}) of different sizes, which cannot share a mask."
        )
    return sizes.pop()[0]


def _output_classes(heads: list[nn.Module], names: Names) -> int:
    counts = set()
    for name, head in zip(names, heads, strict=True):
        if isinstance(head, nn.Linear):
            counts.add(head.out_features)
        elif isinstance(head, nn.Conv2d):
            counts.add(head.out_channels)
        else:
            raise InputError(f"head {name!r} is a {type(head).__name__}; MixMo needs a linear layer or a convolution.")
    if len(counts) > 1:
        raise InputError(f"the backbone's heads ({', '.join(names)}) have {sorted(counts)} outputs; they must agree.")
    return counts.pop()
