"""MixMo: M encoders in place of a backbone's stem, M heads in place of its classifier.

The stem (first convolution) is replaced *in place* by a module that encodes and mixes (:mod:`mixmo.stem`). The
backbone is fed the members' images folded into the channel axis, (B, M*C, H, W), so that it sees images of their true
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import timm
import torch
from torch import Tensor, nn

import mixmo.models.paper  # noqa: F401  (registers its models with timm)
from mixmo.errors import InputError, one_of, reason
from mixmo.mixing import check_masks
from mixmo.models.copying import copy_module
from mixmo.models.initialization import add_noise, parts_of_members, share_out
from mixmo.models.splitting import split_at
from mixmo.models.timm_helpers import DELEGATED, delegate
from mixmo.stem import MemberHeads, MixingStem, check_stem_input, try_mixture, with_masks


class MixMo(nn.Module):
    """A multi-input multi-output network: M subnetworks in one backbone (section 3 of the paper).

    Args:
        backbone: A timm model name (the paper's are ``wide_resnet28_10`` … and ``preact_resnet18_1`` …), or
            a module that maps images (B, C, H, W) to logits (B, K). A module is copied, not changed.
        num_members: M; 1 is the ordinary single network.
        num_classes: K for a timm name (``None`` is its default); a module must have as many outputs.
        stem: Dotted name of the first convolution; needed for a module, known for timm models. Several, where the
            image goes through several in parallel (RepVGG).
        head: Dotted name of the final classifier; detected if not given (distilled DeiT has two).
        trained: The backbone's weights are trained already (implied by ``pretrained=True`` or a
            ``checkpoint_path``). Encoders then
            start as the trained stem / M and heads as the trained head, so that the network starts out
            as the trained one. Otherwise every member's stem and head are independent draws: of the backbone's own
            initialisation for a timm name; for a module, whose initialisation is not known, of the normal
            distribution with each tensor's mean and standard deviation.
        fresh_heads: Whether a trained backbone's heads are independent draws nevertheless, because its head is new:
            equal heads on equal encoders learn the same. ``None`` does so for a timm name with another number of
            classes than timm says it was trained for; a module's head counts as trained.
        noise: Breaks the symmetry of equal encoders and heads of a trained backbone: each gets normal noise of this
            share of its weights' standard deviation, minus the members' mean noise, so that the network still starts
            out as the trained one. Without it and with equal heads members stay copies of each other.
        mix_at: Dotted name of a module, such as the first stage, behind which features are mixed: encoders are then
            copies of everything up to it. ``None`` mixes behind the stem, as published.
        **options: More keywords of ``timm.create_model``: ``in_chans``, ``img_size``, ``pretrained``, …

    Attributes:
        encoders: M modules (B, C, H, W) → (B, F, h, w); M lists of them where there are several stems.
        heads: M modules, features → (B, K).
        backbone: The backbone, with stems and heads replaced.
        stem_names: Where the stems are in it.
        head_names: Where the heads are in it.

    Raises:
        InputError: if the backbone is unknown, has no stem or head, or stems that one mask does not fit, or cannot be
            cut at ``mix_at``, or M < 1; or M > 1 and the backbone changes its input before its stem.

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
        if num_members < 1:
            raise InputError(f"num_members is {num_members}; a network has at least 1 member.")
        if isinstance(backbone, str):
            if num_classes is not None:
                options["num_classes"] = num_classes
            self.backbone = create_backbone(backbone, **options)
            trained = trained or bool(options.get("pretrained") or options.get("checkpoint_path"))
        else:
            if options:
                raise InputError(f"{', '.join(options)}: such options are for timm names, but backbone is a module.")
            try:
                self.backbone = copy_module(backbone)
            except RuntimeError as error:  # tensors that are computed, as by torch's older weight_norm
                raise InputError(f"the backbone cannot be copied: {reason(error)}.") from error
        if noise < 0 or (noise and not trained):
            raise InputError(f"noise is {noise}; it is 0 or positive, and needs a trained backbone.")
        if trained and mix_at is not None:
            raise InputError("trained weights go with mixing behind the stem: leave out mix_at, or train from scratch.")
        self.num_members, self.mix_at = num_members, mix_at
        names = (_names(self.backbone, stem, "first_conv", "stem"), _names(self.backbone, head, "classifier", "head"))
        self.image_size = _image_size(self.backbone, options)
        known_classes = _settings(self.backbone).get("num_classes")
        self.backbone, self.stem_names, self.head_names = _cut_backbone(self.backbone, names, mix_at)
        stems = [_submodule(self.backbone, name, "stem") for name in self.stem_names]
        classifiers = [_submodule(self.backbone, name, "head") for name in self.head_names]
        self.in_chans = _input_channels(stems, self.stem_names, type(self.backbone).__name__)
        channels = options.get("in_chans") or _settings(self.backbone).get("input_size", (self.in_chans,))[0]
        if isinstance(backbone, str) and self.in_chans != channels:
            raise InputError(
                f"backbone {backbone!r} rearranges the pixels of {channels} channels into the {self.in_chans} that its "
                "stem takes; members need a stem that sees the images themselves."
            )
        self.num_classes = _output_classes(classifiers, self.head_names)
        if num_classes not in (None, self.num_classes):
            raise InputError(f"num_classes is {num_classes}, but the backbone's head has {self.num_classes} outputs.")
        if fresh_heads is None:
            own_file = not isinstance(backbone, str) or options.get("checkpoint_path")  # its head is trained with it
            replaced = not own_file and known_classes not in (None, self.num_classes)
            fresh_heads = not trained or replaced
        others: list[tuple[list[nn.Module], list[nn.Module]]] = []
        if isinstance(backbone, str) and (not trained or fresh_heads):
            others = [_fresh_parts(backbone, options, names, mix_at) for _ in range(num_members - 1)]
        encoders = parts_of_members(stems, [stems for stems, _ in others], num_members, not trained)
        heads = parts_of_members(classifiers, [heads for _, heads in others], num_members, fresh_heads)
        if trained:
            for equal in encoders:
                share_out(equal, self.stem_names[0])
            for equal in [*encoders, *([] if fresh_heads else heads)]:
                add_noise(equal, noise)
        for name, members in zip(self.stem_names, encoders, strict=True):
            self.backbone.set_submodule(name, MixingStem(members, self.in_chans))
        for name, members in zip(self.head_names, heads, strict=True):
            self.backbone.set_submodule(name, MemberHeads(members))
        if num_members > 1:
            try_mixture(self.backbone, self.stems, self.image_size)

    def __getattr__(self, name: str) -> Any:
        """Return a part of the network, or an attribute that timm's helpers read, from the backbone."""
        return delegate(self.backbone, name) if name in DELEGATED else super().__getattr__(name)

    @property
    def stems(self) -> list[MixingStem]:
        """The modules in place of the backbone's stems, usually one."""
        return [self.backbone.get_submodule(name) for name in self.stem_names]  # type: ignore[misc]

    @property
    def classifiers(self) -> list[MemberHeads]:
        """The modules in place of the backbone's heads, usually one."""
        return [self.backbone.get_submodule(name) for name in self.head_names]  # type: ignore[misc]

    @property
    def encoders(self) -> nn.ModuleList:
        """The M encoders."""
        return _by_member([stem.encoders for stem in self.stems])

    @property
    def heads(self) -> nn.ModuleList:
        """The M classifiers."""
        return _by_member([classifier.heads for classifier in self.classifiers])

    def encoder_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (F, h, w), the shape of an encoder's output for an image of height × width, and of masks.

        Raises:
            InputError: if the stem cannot take that size, or its output is not a feature map.

        Example:
            >>> MixMo("preact_resnet18_1", num_classes=10).encoder_shape(64, 64)
            (64, 32, 32)
        """
        return self.stems[0].encoder_shape(height, width)

    def forward(self, inputs: Tensor, masks: Tensor | None = None) -> Tensor:
        """Classify images as the ensemble, or mixtures of M inputs as M members.

        Args:
            inputs: Images (B, C, H, W), or one image per member (B, M, C, H, W).
            masks: (B, M, 1 or F, h, w) for inputs of five axes; ``None`` mixes them equally.

        Returns:
            The ensemble's logits (B, K) of images, the mean of the members'; the members' logits (B, M, K) of mixtures.

        Raises:
            InputError: if shapes do not fit.
        """
        if inputs.dim() == 5:
            if inputs.shape[1:3] != (self.num_members, self.in_chans):
                raise InputError(
                    f"inputs have shape {tuple(inputs.shape)}, but this network takes "
                    f"(B, {self.num_members}, {self.in_chans}, H, W)."
                )
            return self._mixed(inputs, masks)
        if masks is not None:
            raise InputError("masks go with inputs of five axes, (B, M, C, H, W); images mix equally.")
        return self.members(inputs).mean(1)

    def members(self, images: Tensor) -> Tensor:
        """Classify images by each member; all of them see the same image, in one pass.

        Args:
            images: (B, C, H, W).

        Returns:
            Logits (B, M, K), whose mean over the members is ``net(images)``.

        Raises:
            InputError: if the shape does not fit.
        """
        if images.dim() != 4 or images.shape[1] != self.in_chans:
            raise InputError(f"images have shape {tuple(images.shape)}; the network takes (B, {self.in_chans}, H, W).")
        return self.backbone(images).unflatten(1, (self.num_members, self.num_classes))  # type: ignore[no-any-return]

    def _mixed(self, inputs: Tensor, masks: Tensor | None) -> Tensor:
        """Return the logits of mixtures (B, M, C, H, W)."""
        single = self.num_members == 1  # its mask is one everywhere
        folded = inputs.flatten(1, 2) if masks is None or single else self._with_masks(inputs, masks)
        if torch.compiler.is_compiling():
            logits = self.backbone(folded)
        else:
            with check_stem_input(folded) if self.num_members > 1 else nullcontext():
                logits = self.backbone(folded)
        return logits.unflatten(1, (self.num_members, self.num_classes))  # type: ignore[no-any-return]

    def _with_masks(self, inputs: Tensor, masks: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():  # a compiled stem sees whether the numbers fit, not their shape
            check_masks(masks, self.num_members, (len(inputs), *self.encoder_shape(*inputs.shape[-2:])))
        return with_masks(inputs, masks)


def create_backbone(name: str, **options: Any) -> nn.Module:
    """Return ``timm.create_model(name, **options)``; refuse unknown names and options in one sentence.

    Example:
        >>> create_backbone("wide_resnet28_20")
        Traceback (most recent call last):
        mixmo.errors.InputError: unknown backbone 'wide_resnet28_20'; did you mean 'wide_resnet28_2' or ...
    """
    if not timm.is_model(name) and not {":", "/"} & set(name):  # hf-hub:… and local-dir:… are timm's own schemes
        one_of(name.split(".")[0], timm.list_models(), "backbone")
    try:
        model: nn.Module = timm.create_model(name, **options)
    except Exception as error:  # the model's own code may raise anything
        raise InputError(f"backbone {name!r} cannot be built with {options}: {reason(error)}.") from error
    return model


Names = tuple[str, ...]


def _by_member(parts: list[nn.ModuleList]) -> nn.ModuleList:
    """Return the members' modules of one or several places, as a list for each member."""
    return parts[0] if len(parts) == 1 else nn.ModuleList(nn.ModuleList(own) for own in zip(*parts, strict=True))


def _cut_backbone(
    backbone: nn.Module, names: tuple[Names, Names], mix_at: str | None
) -> tuple[nn.Module, Names, Names]:
    """Return the backbone, cut where features are mixed, and the names of its stems and its heads."""
    if mix_at is None:
        return backbone, *names
    return split_at(backbone, mix_at), ("stem",), tuple(f"core.{name}" for name in names[1])


def _fresh_parts(
    backbone: str, options: dict[str, Any], names: tuple[Names, Names], mix_at: str | None
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return stems and heads of a newly built backbone without trained weights."""
    untrained = options | {"pretrained": False, "checkpoint_path": ""}
    built, stems, heads = _cut_backbone(create_backbone(backbone, **untrained), names, mix_at)
    return [built.get_submodule(name) for name in stems], [built.get_submodule(name) for name in heads]


def _settings(backbone: nn.Module) -> dict[str, Any]:
    """Return timm's metadata of a backbone; empty for a user's own module."""
    return getattr(backbone, "pretrained_cfg", None) or {}


def _image_size(backbone: nn.Module, options: dict[str, Any]) -> tuple[int, int] | None:
    """Return (H, W) of the images a backbone is built for, if that is known."""
    size = options.get("img_size") or _settings(backbone).get("input_size", (0,))[1:]
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if len(size) == 2 else None


def _names(backbone: nn.Module, given: str | Sequence[str] | None, key: str, argument: str) -> Names:
    """Return the names of the stems or the heads: as given, or by timm's metadata."""
    known = given or _settings(backbone).get(key)
    if not known:
        raise InputError(
            f"{type(backbone).__name__} does not say which module is its {argument}; name it, as in "
            f"mixmo.MixMo(module, …, {argument}='…'), or take another backbone."
        )
    return (known,) if isinstance(known, str) else tuple(known)


def _submodule(backbone: nn.Module, name: str, argument: str) -> nn.Module:
    names = [known for known, _ in backbone.named_modules() if known]
    one_of(name, names, f"{argument} module of {type(backbone).__name__}")
    return backbone.get_submodule(name)


def _input_channels(stems: list[nn.Module], names: Names, title: str) -> int:
    """Return C, after checking that one mask fits the features of every stem."""
    convolutions = [next((part for part in stem.modules() if isinstance(part, nn.Conv2d)), None) for stem in stems]
    for name, stem, convolution in zip(names, stems, convolutions, strict=True):
        if convolution is None:
            raise InputError(
                f"stem {name!r} of {title} is a {type(stem).__name__} without a convolution; MixMo needs one there."
            )
    kinds = {(each.in_channels, each.out_channels, each.stride) for each in convolutions if each is not None}
    if len(kinds) > 1:
        raise InputError(
            f"the backbone has {len(stems)} stems ({', '.join(names)}) of different sizes, which one mask cannot fit."
        )
    return kinds.pop()[0]


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
        raise InputError(f"the backbone's heads ({', '.join(names)}) have {sorted(counts)} outputs, which must agree.")
    return counts.pop()
