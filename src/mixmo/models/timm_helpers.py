"""Attributes that timm's helpers read, delegated to the backbone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

DELEGATED = ("pretrained_cfg", "default_cfg", "no_weight_decay", "group_matcher", "set_grad_checkpointing")
"""Attributes that a wrapper has if its backbone has them."""

PREFIX = "backbone."


def delegate(backbone: nn.Module, name: str) -> Any:
    """Return a :data:`DELEGATED` attribute of ``backbone``, with parameter names of the module around it."""
    attribute = getattr(backbone, name)
    if name == "no_weight_decay":
        return lambda: {f"{PREFIX}{parameter}" for parameter in attribute()}
    if name == "group_matcher":
        return lambda coarse=False: _prefix_matcher(attribute(coarse=coarse))
    return attribute


def _prefix_matcher(matcher: dict[str, Any] | Callable[[str], Any]) -> dict[str, Any] | Callable[[str], Any]:
    """Return timm's rules for layer groups (patterns of names, or a function of a name) for prefixed names."""
    if not isinstance(matcher, dict):
        return lambda name: matcher(name.removeprefix(PREFIX))
    return {
        group: [(_prefix_pattern(each[0]), *each[1:]) for each in rule]
        if isinstance(rule, list | tuple)
        else rule and _prefix_pattern(rule)
        for group, rule in matcher.items()
    }


def _prefix_pattern(pattern: str) -> str:
    """Return a pattern for prefixed names, anchored at their start; its own anchors are removed."""
    unanchored = re.sub(r"(?<![\[\\])\^", "", pattern)
    return rf"^{re.escape(PREFIX)}(?:{unanchored})"
