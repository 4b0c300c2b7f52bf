"""MixMo around any image classifier: M encoders in place of its stem, M heads in place of its classifier.

The stem (first convolution) is replaced *in place* by a module that encodes and mixes (:mod:`mixmo.stem`). The
backbone is fed the members' images folded into the channel axis, (B, M*C, H, W), so that it sees images of their true
size.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import timm
import torch
from torch import Tensor, nn

import mixmo.models.paper  # noqa: F401  (registers its models with timm)
from mixmo.errors import InputError, one_of, reason
from mixmo.models.splitting import split_at
from mixmo.stem import MemberHeads, MixingStem, check_plain, showing, with_masks


class MixMo(nn.Module):
    """A multi-input multi-output network: M subnetworks in one backbone (section 3 of the paper).

    Args:
        backbone: A timm model name (the paper's are ``wide_resnet28_10`` … and ``preact_resnet18_1`` …), or
            a module that maps images (B, C, H, W) to logits (B, K). A module is copied, not changed.
        num_members: M; 1 is the ordinary single network.
        num_classes: K for a timm name (``None`` is its default); a module must have as many outputs.
        stem: Dotted name of the first convolution; needed for a module, known for timm models.
        head: Dotted name of the final classifier; likewise.
        trained: The backbone's weights are trained already (implied by ``pretrained=True`` or a
            ``checkpoint_path``). Encoders then
            start as the trained stem / M and heads as the trained head, so that the network starts out
            as the trained one. Otherwise every member's stem and head are independent draws: of the backbone's own
            initialisation for a timm name; for a module, whose initialisation is not known, of the normal
            distribution with each tensor's mean and standard deviation.
        fresh_heads: Whether a trained backbone's heads are independent draws all the same, since its head is new:
            equal heads on equal encoders learn alike. ``None`` does so for a timm name whose classes are not as many
            as timm says it was trained for; a module's head counts as trained.
        noise: Breaks the symmetry of equal encoders and heads of a trained backbone: each gets normal noise of this
            share of its weights' standard deviation, less the members' mean noise, so that the network still starts out
            as the trained one. Without it and with equal heads members stay copies of each other.
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
                raise InputError(
                    f"{', '.join(options)}: such options are for timm names, but the backbone is a module."
                )
            try:
                self.backbone = copy.deepcopy(backbone)
            except RuntimeError as error:  # tensors that are computed, as by torch's older weight_norm
                raise InputError(f"the backbone cannot be copied: {reason(error)}.") from error
        if noise < 0 or (noise and not trained):
            raise InputError(f"noise is {noise}; it is 0 or positive, and takes a trained backbone.")
        if trained and mix_at is not None:
            raise InputError("trained weights go with mixing behind the stem: leave out mix_at, or train from scratch.")
        self.num_members, self.mix_at = num_members, mix_at
        names = (stem or _known_name(self.backbone, "first_conv", "stem"),
                 head or _known_name(self.backbone, "classifier", "head"))  # fmt: skip
        self.image_size = _image_size(self.backbone, options)
        known_classes = _settings(self.backbone).get("num_classes")
        self.backbone, self.stem_name, self.head_name = _divided(self.backbone, names, mix_at)
        first = _submodule(self.backbone, self.stem_name, "stem")
        classifier = _submodule(self.backbone, self.head_name, "head")
        self.in_chans = _input_channels(first, self.stem_name)
        self.num_classes = _output_classes(classifier, self.head_name)
        if num_classes not in (None, self.num_classes):
            raise InputError(f"num_classes is {num_classes}, but the backbone's head has {self.num_classes} outputs.")
        if fresh_heads is None:
            own_file = not isinstance(backbone, str) or options.get("checkpoint_path")  # its head is trained with it
            replaced = not own_file and known_classes not in (None, self.num_classes)
            fresh_heads = not trained or replaced
        others: list[tuple[nn.Module, nn.Module]] = []
        if isinstance(backbone, str) and (not trained or fresh_heads):
            others = [_fresh_parts(backbone, options, names, mix_at) for _ in range(num_members - 1)]
        encoders = _members(first, num_members, not trained, [stem for stem, _ in others])
        heads = _members(classifier, num_members, fresh_heads, [head for _, head in others])
        if trained:
            _scale_convolutions(encoders, 1 / num_members)
            for equal in (encoders, [] if fresh_heads else heads):
                _add_noise(equal, noise)
        self.backbone.set_submodule(self.stem_name, MixingStem(encoders, self.in_chans))
        self.backbone.set_submodule(self.head_name, MemberHeads(heads))

    @property
    def stem(self) -> MixingStem:
        """The module that stands in the backbone's stem."""
        return self.backbone.get_submodule(self.stem_name)  # type: ignore[return-value]

    @property
    def encoders(self) -> nn.ModuleList:
        """The M encoders."""
        return self.stem.encoders

    @property
    def heads(self) -> nn.ModuleList:
        """The M classifiers."""
        return self.backbone.get_submodule(self.head_name).heads  # type: ignore[return-value]

    def encoder_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (F, h, w), what an encoder makes of an image of height × width; masks have this shape.

        Raises:
            InputError: if the stem cannot take that size, or its output is no feature map.

        Example:
            >>> MixMo("preact_resnet18_1", num_classes=10).encoder_shape(64, 64)
            (64, 32, 32)
        """
        return self.stem.encoder_shape(height, width)

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
            return self._mixed(inputs, masks)
        elif inputs.dim() != 4 or inputs.shape[1] != self.in_chans:
            raise InputError(
                f"images have shape {tuple(inputs.shape)}, but this network takes (B, {self.in_chans}, H, W)."
            )
        elif masks is not None:
            raise InputError("masks go with inputs of five axes, (B, M, C, H, W); images mix equally.")
        return self.backbone(inputs).unflatten(1, (self.num_members, self.num_classes))  # type: ignore[no-any-return]

    def _mixed(self, inputs: Tensor, masks: Tensor | None) -> Tensor:
        """Return the logits of mixtures (B, M, C, H, W)."""
        folded = inputs.flatten(1, 2) if masks is None else self._with_masks(inputs, masks)
        if torch.compiler.is_compiling():
            logits = self.backbone(folded)
        else:
            with showing(folded) if self.num_members > 1 else nullcontext():
                logits = self.backbone(folded)
        return logits.unflatten(1, (self.num_members, self.num_classes))  # type: ignore[no-any-return]

    def _with_masks(self, inputs: Tensor, masks: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():  # a compiled stem sees whether the numbers fit, not their shape
            channels, rows, columns = self.encoder_shape(*inputs.shape[-2:])
            if masks.shape not in {(len(inputs), self.num_members, c, rows, columns) for c in (1, channels)}:
                raise InputError(
                    f"masks have shape {tuple(masks.shape)}, but the encoders' output asks for "
                    f"({len(inputs)}, {self.num_members}, 1 or {channels}, {rows}, {columns})."
                )
        return with_masks(inputs, masks)


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
    except Exception as error:  # whatever the model's own code raises
        raise InputError(f"backbone {name!r} cannot be built with {options}: {reason(error)}.") from error
    return model


def _divided(backbone: nn.Module, names: tuple[str, str], mix_at: str | None) -> tuple[nn.Module, str, str]:
    """Return the backbone, cut where features are mixed, and the names of its stem and its head."""
    if mix_at is None:
        return backbone, *names
    return split_at(backbone, mix_at), "stem", f"core.{names[1]}"


def _fresh_parts(
    backbone: str, options: dict[str, Any], names: tuple[str, str], mix_at: str | None
) -> tuple[nn.Module, nn.Module]:
    """Return stem and head of a backbone that is built for them, without trained weights."""
    untrained = options | {"pretrained": False, "checkpoint_path": ""}
    built, stem, head = _divided(create_backbone(backbone, **untrained), names, mix_at)
    return built.get_submodule(stem), built.get_submodule(head)


def _members(module: nn.Module, count: int, fresh: bool, others: list[nn.Module]) -> list[nn.Module]:
    """Return M modules: copies of a trained one, or the first and independent draws beside it."""
    if not fresh:
        return [copy.deepcopy(module) for _ in range(count)]
    return [module, *(others or (_drawn_like(module) for _ in range(count - 1)))]


@torch.no_grad()
def _drawn_like(module: nn.Module) -> nn.Module:
    """Return a copy whose every parameter is drawn from the normal distribution of its mean and deviation."""
    drawn = copy.deepcopy(module)
    for parameter in drawn.parameters():
        if parameter.numel() > 1:
            parameter.copy_(torch.randn_like(parameter) * parameter.std() + parameter.mean())
    return drawn


@torch.no_grad()
def _scale_convolutions(encoders: list[nn.Module], factor: float) -> None:
    """Scale trained stems, so that their sum over the members is the trained stem again."""
    check_plain(encoders, "stem")
    for encoder in encoders:
        for parameter in encoder.parameters():
            parameter.mul_(factor)


@torch.no_grad()
def _add_noise(modules: list[nn.Module], share: float) -> None:
    """Add normal noise of a share of each tensor's standard deviation, whose sum over the modules is zero."""
    for tensors in zip(*(module.parameters() for module in modules), strict=True):
        if tensors[0].numel() > 1:
            noise = torch.stack([torch.randn_like(each) * (share * each.std()) for each in tensors])
            for tensor, own in zip(tensors, noise - noise.mean(0), strict=True):
                tensor.add_(own)


def _settings(backbone: nn.Module) -> dict[str, Any]:
    """Return what timm knows of a backbone; nothing for a module of somebody's own."""
    return getattr(backbone, "pretrained_cfg", None) or {}


def _image_size(backbone: nn.Module, options: dict[str, Any]) -> tuple[int, int] | None:
    """Return (H, W) of the images a backbone is built for, if that is known."""
    size = options.get("img_size") or _settings(backbone).get("input_size", (0,))[1:]
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if len(size) == 2 else None


def _known_name(backbone: nn.Module, key: str, argument: str) -> str:
    """Return the one name timm's metadata gives for the stem or the head."""
    name = _settings(backbone).get(key)
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
