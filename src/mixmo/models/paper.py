"""The paper's backbones, registered with timm when ``mixmo`` is imported.

Names for ``timm.create_model`` and :class:`mixmo.MixMo` are
``wide_resnet{10_1,10_2,10_4,16_1,16_2,16_4,16_8,28_2,28_4,28_10,40_4}`` and ``preact_resnet18_{1,2,3}``;
``wide_resnet`` takes any ``depth=`` of 6n + 4 and ``width=``.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from mixmo.errors import InputError

TRUNCATION = 0.87962566103423978
"""Standard deviation of a standard normal distribution truncated at ±2."""


class PreActBlock(nn.Module):
    """Two pre-activated 3×3 convolutions and a shortcut: x ↦ shortcut(x) + conv(relu(bn(conv(relu(bn(x)))))).

    With ``stride_in_second`` (the paper's WideResNet) the second convolution has the stride, its input is padded by one
    on the right and the bottom only, and the 1×1 shortcut takes x. Otherwise (its PreActResNet) the first convolution
    has the stride, and the shortcut takes the activated x.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, stride_in_second: bool) -> None:
        super().__init__()
        self.stride_in_second = stride_in_second
        self.pads_asymmetrically = stride_in_second and stride != 1
        strides = (1, stride) if stride_in_second else (stride, 1)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, strides[0], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        padding = 0 if self.pads_asymmetrically else 1
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, strides[1], padding, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x), inplace=True)  # batch norm's backward needs its input, not its output
        source = x if self.stride_in_second or isinstance(self.shortcut, nn.Identity) else activated
        y = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        if self.pads_asymmetrically:
            y = F.pad(y, (0, 1, 0, 1))
        return self.shortcut(source) + self.conv2(y)  # type: ignore[no-any-return]


class PreActNet(nn.Module):
    """A stem convolution, stages of :class:`PreActBlock`, global average pooling and a linear head.

    Stages have ``widths`` channels, and each but the first halves the resolution. With ``final_norm`` a batch norm and
    ReLU precede the pooling. Without classes there is no head. ``head_std`` is the standard deviation of the head's
    initial weights, by default He et al.'s.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: int,
        stem_channels: int,
        stem_stride: int,
        stride_in_second: bool,
        final_norm: bool,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        head_std: float | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.head_std = num_classes, in_chans, head_std
        self.num_features = self.head_hidden_size = widths[-1]
        self.conv_stem = nn.Conv2d(in_chans, stem_channels, 3, stem_stride, 1, bias=False)
        stages, channels = [], stem_channels
        for index, width in enumerate(widths):
            stage = []
            for block in range(blocks):
                stride = 2 if index and not block else 1
                stage.append(PreActBlock(channels, width, stride, stride_in_second))
                channels = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.norm: nn.Module = nn.BatchNorm2d(channels) if final_norm else nn.Identity()
        self.final_norm = final_norm
        self.head_drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        """Draw He-normal weights truncated at two deviations, as the authors' code does; set biases to zero."""
        if isinstance(module, nn.Conv2d | nn.Linear):
            if isinstance(module, nn.Linear) and self.head_std is not None:
                nn.init.normal_(module.weight, std=self.head_std)
            else:
                fan_in = module.weight[0].numel()
                std = math.sqrt(2 / fan_in) / TRUNCATION
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of layers, for layer-wise learning rates: stem, blocks or stages, norm, head."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^conv_stem", "blocks": [(blocks, None), (r"^norm", (99999,))]}

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one for ``num_classes`` classes."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self._initialise(self.fc)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to the last feature map (B, D, h, w)."""
        x = self.norm(self.stages(self.conv_stem(x)))
        return F.relu(x) if self.final_norm else x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the last feature map (B, D, h, w) to logits (B, K), or to features (B, D)."""
        x = self.head_drop(x.mean((2, 3)))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        return self.forward_head(self.forward_features(x))


class WideResNet(PreActNet):
    """The paper's variant of WideResNet-d-k, d = 6n + 4, for small images (Zagoruyko & Komodakis 2016).

    The stem is 3×3, C→16, stride 1; three stages of (d - 4) / 6 blocks have 16k, 32k and 64k channels.
    """

    def __init__(self, depth: int = 28, width: int = 10, **options: Any) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f"WideResNet depth is {depth}; it must be 6n + 4: 10, 16, 22, 28, …")
        if width < 1:
            raise InputError(f"WideResNet width is {width}; it must be 1 or more.")
        widths = (16 * width, 32 * width, 64 * width)
        super().__init__(widths, (depth - 4) // 6, 16, 1, True, True, **options)


class PreActResNet18(PreActNet):
    """The paper's variant of PreActResNet-18-w for 64×64 images (He et al. 2016).

    The stem is 3×3, C→64, stride 2; four stages of two blocks have 64w, 128w, 256w and 512w channels, without a batch
    norm or ReLU after them.
    """

    def __init__(self, width: int = 1, **options: Any) -> None:
        if width < 1:
            raise InputError(f"PreActResNet-18 width is {width}; it must be 1 or more.")
        widths = (64 * width, 128 * width, 256 * width, 512 * width)
        super().__init__(widths, 2, 64, 2, False, False, head_std=0.01, **options)


def _register(name: str, model: type[PreActNet], size: int, **fixed: Any) -> None:
    """Register a timm entry point, which must be a function called ``name``."""

    def entry(pretrained: bool = False, **options: Any) -> Any:
        return build_model_with_cfg(partial(model, **fixed), name, pretrained, **options)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"Return {model.__name__} with {fixed or 'the sizes given'}."
    settings = {"input_size": (3, size, size), "num_classes": 1000, "first_conv": "conv_stem", "classifier": "fc"}
    default_cfgs.update(generate_default_cfgs({name: settings}))
    register_model(entry)


default_cfgs: dict[str, Any] = {}  # read by timm's register_model
for _depth, _widths in {10: (1, 2, 4), 16: (1, 2, 4, 8), 28: (2, 4, 10), 40: (4,)}.items():
    for _width in _widths:
        _register(f"wide_resnet{_depth}_{_width}", WideResNet, 32, depth=_depth, width=_width)
_register("wide_resnet", WideResNet, 32)
for _width in (1, 2, 3):
    _register(f"preact_resnet18_{_width}", PreActResNet18, 64, width=_width)
_register("preact_resnet18", PreActResNet18, 64)
