"""Import a user's masks and objectives, if allowed, and try them before training.

Importing a module runs it. A name such as ``mypackage.masks:stripes`` is imported only if ``allow_imports`` lists the
module, in the user's recipe or on the command line; a run's folder cannot give this permission.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mixmo.batch_mixing import MixedBatch, Objective
from mixmo.errors import InputError, explain_errors, one_of
from mixmo.masks import FeatureShape
from mixmo.masks.custom import try_masks
from mixmo.mixing import Kind

PUBLISHED = "mixed_cross_entropy"
"""Name of the paper's loss in recipes."""


def resolve(name: str, allowed: Sequence[str]) -> Any:
    """Import the function ``package.module:function`` if ``allowed`` lists the full name of the module.

    Listing a package does not allow its modules. Other modules are not imported.

    Example:
        >>> resolve("math:hypot", ["math"])(3, 4)
        5.0
        >>> resolve("math:hypot", [])
        Traceback (most recent call last):
        mixmo.errors.InputError: 'math:hypot' needs code of the module math, ...
    """
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), attribute]):
        raise InputError(f"{name!r} is not an import path of the form package.module:function.")
    if module not in allowed:
        raise InputError(
            f"{name!r} needs code of the module {module}, which is not allowed; if you trust it, allow it with "
            f"allow_imports: [{module}]."
        )
    with explain_errors(f"{name!r} cannot be imported"):
        function = getattr(import_module(module), attribute)
    if not callable(function):
        raise InputError(f"{name!r} is {type(function).__name__}, not a function.")
    return function


def digest_code(name: str) -> str:
    """Return the first digits of the SHA-256 of an imported function's module; empty if its source is not available."""
    try:
        source = inspect.getsource(sys.modules[name.partition(":")[0]])
    except (OSError, TypeError, KeyError):
        return ""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def find_masks(
    kinds: Mapping[Kind, float], allowed: Sequence[str], members: int, shape: FeatureShape
) -> dict[Kind, float]:
    """Return the probabilities of mask kinds, with import paths resolved to functions, which are tried."""
    resolved = dict[Kind, float]()
    for kind, probability in kinds.items():
        if isinstance(kind, str) and ":" in kind:
            name, kind = kind, resolve(kind, allowed)
            try_masks(kind, members, shape, name)
        resolved[kind] = probability
    return resolved


def find_objective(name: str, allowed: Sequence[str], members: int, classes: int, soft: bool) -> Objective | None:
    """Import a user's objective and try it on two mixtures; return ``None`` for the paper's.

    Targets are probabilities (B, M, K) if ``soft`` (pixel mixing or several labels), else class numbers (B, M).
    """
    if ":" not in name:
        one_of(name, (PUBLISHED,), "objective")
        return None
    objective: Objective = resolve(name, allowed)
    size = (2, members)
    targets = torch.full((*size, classes), 1 / classes) if soft else torch.zeros(size, dtype=torch.int64)
    images, masks = torch.zeros(*size, 3, 8, 8), torch.full((*size, 1, 8, 8), 1 / members)
    logits = torch.zeros(*size, classes, requires_grad=True)
    with explain_errors(f"objective {name!r} fails on a batch of two mixtures"):
        loss = objective(logits, MixedBatch(images, masks, targets, torch.ones(size), torch.ones(2) > 1))
    if not isinstance(loss, Tensor) or loss.shape != () or not loss.requires_grad:
        raise InputError(f"objective {name!r} does not return a scalar tensor that has a gradient.")
    return objective
