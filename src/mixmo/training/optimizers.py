"""Optimisers by timm's names, sharpness-aware minimisation, freezing and the learning-rate schedule."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import timm.optim
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixmo.config.settings import OptimizerSettings
from mixmo.errors import InputError, explain_errors, one_of
from mixmo.network import MixMo


def build_optimizer(net: nn.Module, own: OptimizerSettings, lr: float) -> torch.optim.Optimizer:
    """Build an optimiser by timm's name (``sgd`` has Nesterov momentum), fused where torch can.

    The paper adds 3e-4 * Σθ² to the loss over all parameters. Its gradient is 6e-4 * θ, hence ``weight_decay=6e-4`` and
    ``decay_all``, which includes batch norms and biases. With ``layer_decay`` d, a layer k layers before the head has
    d^k times the peak learning rate (Clark et al. 2020); timm groups the layers.
    """
    one_of(own.name, map(str, timm.optim.list_optimizers()), "optimizer")
    if own.layer_decay is not None and not hasattr(net, "group_matcher"):
        raise InputError(
            f"optimizer.layer_decay needs the layers of {type(net).__name__}, which has no method group_matcher (as "
            "timm's models have); add one, or leave layer_decay out."
        )
    name = "momentum" if own.name == "sgd" and not own.momentum else own.name  # there is no Nesterov momentum of 0
    accepted = inspect.signature(timm.optim.get_optimizer_class(name, bind_defaults=False)).parameters
    fused: dict[str, Any] = {"fused": True} if "fused" in accepted else {}
    with explain_errors(f"optimizer {own.name!r} does not take {own.options}"):
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            net, name, lr=lr, weight_decay=own.weight_decay, momentum=own.momentum,
            filter_bias_and_bn=not own.decay_all, layer_decay=own.layer_decay, **(fused | own.options),
        )  # fmt: skip
    # Fused SGD fails if its first step has gradients for only some of a group's parameters (others are frozen), and
    # reads uninitialised momentum if that step is skipped (float16).
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for each in group["params"] if group["momentum"] else ():
                optimizer.state[each]["momentum_buffer"] = torch.zeros_like(each)
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)  # timm leaves this to its schedulers
        group["initial_lr"] = group["lr"]
    return optimizer


def is_setting(key: str) -> bool:
    """Return whether a key of a parameter group is a hyperparameter, not a step counter such as Lookahead's.

    Example:
        >>> [is_setting(key) for key in ("weight_decay", "params", "lookahead_step")]
        [True, False, False]
    """
    return key != "params" and not key.endswith("step")


@contextmanager
def perturb_weights(net: nn.Module, radius: float) -> Iterator[None]:
    """Within the block, move the weights to w + radius · g / ‖g‖, g being their gradient (SAM, Foret et al. 2021).

    Afterwards weights and buffers, such as batch-norm statistics, are restored; gradients are not.
    """
    weights = [each for each in net.parameters() if each.grad is not None]
    gradients = [each.grad for each in weights if each.grad is not None]
    saved = [each.detach().clone() for each in (*weights, *net.buffers())]
    scale = radius / (nn.utils.get_total_norm(gradients) + 1e-12)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.add_(gradient * scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip((*weights, *net.buffers()), saved, strict=True):
                tensor.copy_(value)


class FrozenCore:
    """A context in which only encoders and heads are trained; other batch norms are in evaluation mode.

    Optimisers skip parameters without a gradient, weight decay and momentum included.

    Example:
        >>> net = MixMo("wide_resnet10_1", num_classes=5)
        >>> with FrozenCore(net):
        ...     len([each for each in net.parameters() if each.requires_grad])  # two encoders, two heads with biases
        6
    """

    def __init__(self, net: MixMo) -> None:
        trained = {each for part in (*net.stems, *net.classifiers) for each in part.modules()}
        weights = {each for module in trained for each in module.parameters()}
        if not any(each.requires_grad for each in weights):
            raise InputError("optimizer.freeze_epochs leaves nothing to train: encoders and heads require no gradient.")
        self.parameters = [each for each in net.parameters() if each.requires_grad and each not in weights]
        self.norms = [each for each in net.modules() if isinstance(each, _BatchNorm) and each not in trained]

    def __enter__(self) -> None:
        self._set(False)

    def __exit__(self, *error: object) -> None:
        self._set(True)

    def _set(self, training: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad = training
        for norm in self.norms:
            norm.training = training


@dataclass(frozen=True)
class Schedule:
    """The learning rate at every step, as a share of its peak.

    A linear warm-up (k / warmup at step k = 1, 2, …) multiplies either ``multistep`` (a factor ``gamma`` at each of the
    ``milestones``, shares of the epochs, rounded to whole epochs, at least one) or ``cosine``, which decays to 0.

    Example:
        >>> schedule = Schedule("multistep", 10, epochs=300, warmup_steps=4, milestones=(1 / 3, 2 / 3, 0.75))
        >>> [schedule(step) for step in (0, 3, 999)], schedule(1000)   # epoch 101 starts with step 1000
        ([0.25, 1.0, 1.0], 0.1)
    """

    kind: Literal["multistep", "cosine"]
    steps_per_epoch: int
    epochs: int
    warmup_steps: int = 0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1

    def __call__(self, step: int) -> float:
        """Return the share of the peak rate at a step, counted from 0."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.kind == "cosine":
            return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, step / (self.steps_per_epoch * self.epochs))))
        epoch = step // self.steps_per_epoch
        return warmup * self.gamma ** sum(epoch >= max(1, round(share * self.epochs)) for share in self.milestones)


def warmup_steps(num_images: int, batch_size: int, batch_repetition: int, epochs: float) -> int:
    """Return the steps of the published warm-up: ``epochs`` epochs of a single network, times b."""
    return round(epochs * math.ceil(num_images / batch_size) * batch_repetition)
