"""Copies of modules, including parametrisations and plain attributes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def copy_module(module: Module) -> Module:
    """Return a copy that shares nothing with a module.

    Some modules cache computed tensors, such as attention biases, until the next training step; torch cannot copy
    tensors with a graph, so the copy's are detached.
    """
    memo: dict[int, Any] = {}
    for each in module.modules():
        for value in vars(each).values():
            for tensor in _tensors(value):
                if tensor.grad_fn is not None:
                    memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(module, memo)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield a tensor, or those in a container."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)
