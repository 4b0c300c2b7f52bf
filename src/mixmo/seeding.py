"""Seeding: every random draw is a function of (seed, step), so that runs resume exactly and ranks agree on a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mixmo.errors import InputError

Stream = Literal["step", "order", "split", "init", "global", "read", "corruption", "statistics", "estimate", "subset",
                 "test", "copy"]  # fmt: skip
STREAMS: tuple[Stream, ...] = get_args(Stream)
"""Seeds depend on a stream's position: append new ones."""


def seed_for(seed: int, index: int, stream: Stream = "step") -> int:
    """Return a 63-bit seed for one step, epoch or image of a stream of draws; streams are independent."""
    state = np.random.SeedSequence([seed, STREAMS.index(stream), index]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator_for(
    seed: int, index: int, stream: Stream = "step", device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a generator on ``device`` seeded with :func:`seed_for`."""
    return torch.Generator(device).manual_seed(seed_for(seed, index, stream))


def drawing_device(generator: torch.Generator | None, device: torch.device | str | None = None) -> torch.device:
    """Return ``device``, else the generator's device, else the CPU."""
    if device is None:
        return torch.device("cpu") if generator is None else generator.device
    device = torch.device(device)
    if generator is not None and generator.device.type != device.type:
        raise InputError(f"the generator is on {generator.device}, but device is {device}; create it there.")
    return device


class UseGenerator(TorchDispatchMode):
    """Context in which this thread's random operations use ``generator`` instead of torch's global one.

    Only operations on the generator's device are redirected. Unlike with ``torch.random.fork_rng``, which restores the
    global generator's state, other threads can draw at the same time.

    Example:
        >>> _, before = torch.manual_seed(0), torch.get_rng_state()
        >>> with UseGenerator(torch.Generator().manual_seed(0)):
        ...     layer = torch.nn.Linear(2, 3)
        >>> bool((torch.get_rng_state() == before).all()), bool((layer.weight == torch.nn.Linear(2, 3).weight).all())
        (True, True)
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = generator

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], arguments: Any = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        """Call an operation, with the generator if it is random."""
        keywords = dict(keywords or {})
        if torch.Tag.nondeterministic_seeded in function.tags and self._is_on_device(arguments, keywords):
            function = _generator_overload(function)
            if _takes_generator(function):
                keywords["generator"] = keywords.get("generator") or self.generator
        return function(*arguments, **keywords)

    def _is_on_device(self, arguments: Any, keywords: dict[str, Any]) -> bool:
        """Return whether an operation's tensor, or the one it creates, is on the generator's device."""
        first = arguments[0] if arguments and isinstance(arguments[0], torch.Tensor) else None
        device = keywords.get("device") if first is None else first.device
        return torch.device(device or "cpu").type == self.generator.device.type


def _generator_overload(function: Any) -> Any:
    """Return the overload of an operation that takes a generator (``randn``, ``randint``), else the operation."""
    name = "generator" if function._overloadname == "default" else f"{function._overloadname}_generator"
    separate = not _takes_generator(function) and name in function.overloadpacket.overloads()
    return getattr(function.overloadpacket, name) if separate else function


def _takes_generator(function: Any) -> bool:
    return any(argument.name == "generator" for argument in function._schema.arguments)
