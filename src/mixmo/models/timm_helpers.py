"""What timm's helpers ask of a model, delegated to the backbone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

DELEGATED = ("pretrained_cfg", "default_cfg", "no_weight_decay", "group_matcher", "set_grad_checkpointing")
"""Attributes that a wrapper has where its backbone has them."""

PREFIX = "backbone."


def delegate(backbone: nn.Module, name: str) -> Any:
    """Return a :data:`DELEGATED` attribute of a module's ``backbone``, with names as they are in the module."""
    own = getattr(backbone, name)
    if name == "no_weight_decay":
        return lambda: {f"{PREFIX}{each}" for each in own()}
    if name == "group_matcher":
        return lambda coarse=False: _prefixed(own(coarse=coarse))
    return own


def _prefixed(matcher: dict[str, Any] | Callable[[str], Any]) -> dict[str, Any] | Callable[[str], Any]:
    """Return timm's rules for groups of layers: patterns of names, or a function of a name."""
    if not isinstance(matcher, dict):
        return lambda name: matcher(name.removeprefix(PREFIX))
    return {
        group: [(_pattern(each[0]), *each[1:]) for each in rule]
        if isinstance(rule, list | tuple)
        else rule and _pattern(rule)
        for group, rule in matcher.items()
    }


def _pattern(pattern: str) -> str:
    r"""Return a pattern, which is matched at the start of a name, behind the prefix; anchors within it are left out."""
    free = re.sub(r"(?<![\[\\])\^", "", pattern)
    return rf"^{re.escape(PREFIX)}(?:{free})"
