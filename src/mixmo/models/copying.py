"""Copies of modules, with parametrisations and plain attributes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def copy_module(module: Module) -> Module:
    """Return a deep copy of a module.

    Tensors with a graph, which torch cannot copy, are detached; some modules cache them, such as attention biases.
    """
    memo: dict[int, Any] = {}
    for submodule in module.modules():
        for value in vars(submodule).values():
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
