"""Defaults that depend on the device: precision and compilation."""

from __future__ import annotations

import importlib.util
from typing import Literal, get_args

import torch

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
"""Lightning's names: float32 throughout, or float32 weights with products in bfloat16 or float16."""


def training_device(accelerator: str = "auto") -> torch.device:
    """Return the device to train on: the first GPU, if there is one and ``accelerator`` allows it."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", 0)
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps", 0)
    return torch.device("cpu")


def default_precision(device: torch.device) -> Precision:
    """Return ``bf16-mixed`` if the device has bfloat16 units, ``16-mixed`` if only float16 units, else ``32-true``.

    NVIDIA's GPUs of compute capability 7.0 to 7.5, such as V100 and T4, have float16 units only.
    """
    fastest: tuple[Precision, ...] = ("bf16-mixed", "16-mixed")
    return next((precision for precision in fastest if has_units(device, precision)), "32-true")


def has_units(device: torch.device, precision: Precision) -> bool:
    """Return whether a device has units for a precision; emulation would be slower than float32."""
    if precision == "32-true":
        return True
    if device.type == "cuda":
        if precision == "bf16-mixed":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return torch.cuda.get_device_capability(device) >= (7, 0)
    return device.type == "cpu" and precision == "bf16-mixed" and bool(torch.cpu._is_avx512_bf16_supported())


def default_compile(device: torch.device) -> bool:
    """Return whether to compile by default: on NVIDIA GPUs that Triton, if installed, supports.

    On a CPU compiling needs a C++ compiler, and pays in runs of more than a few minutes: set ``model.compile``.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0)
