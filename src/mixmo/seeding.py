"""Seeding: every random draw is a function of (seed, step).

So an interrupted run resumes exactly, and two machines agree on a batch.
"""

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
"""Each stream draws by its place here: a new one goes to the end, since another place is other draws."""


def seed_for(seed: int, index: int, stream: Stream = "step") -> int:
    """Return a well-mixed 63-bit seed for one step, epoch or image of one stream of draws; streams never share one."""
    state = np.random.SeedSequence([seed, STREAMS.index(stream), index]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator_for(
    seed: int, index: int, stream: Stream = "step", device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a generator on ``device`` seeded with :func:`seed_for`."""
    return torch.Generator(device).manual_seed(seed_for(seed, index, stream))


def drawing_device(generator: torch.Generator | None, device: torch.device | str | None = None) -> torch.device:
    """Return where to draw: on the device that is named, else on the generator's, else on the CPU."""
    if device is None:
        return torch.device("cpu") if generator is None else generator.device
    device = torch.device(device)
    if generator is not None and generator.device.type != device.type:
        raise InputError(f"the generator draws on {generator.device}, but device is {device}; make it there.")
    return device


class DrawingFrom(TorchDispatchMode):
    """Has what this thread draws on a generator's device come from that, and leaves torch's global generator alone.

    So a network can be built while other threads draw: ``torch.random.fork_rng`` would put the global generator back to
    where it was at the beginning, and what they drew since would be drawn again.

    Example:
        >>> _, before = torch.manual_seed(0), torch.get_rng_state()
        >>> with DrawingFrom(torch.Generator().manual_seed(0)):
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
        """Call an operation, one that draws with the generator."""
        keywords = dict(keywords or {})
        if torch.Tag.nondeterministic_seeded in function.tags and self._is_here(arguments, keywords):
            function = _taking_generator(function)
            if _takes_generator(function):
                keywords["generator"] = keywords.get("generator") or self.generator
        return function(*arguments, **keywords)

    def _is_here(self, arguments: Any, keywords: dict[str, Any]) -> bool:
        """Return whether an operation draws on the generator's device: that of its tensor, or of the one it makes."""
        first = arguments[0] if arguments and isinstance(arguments[0], torch.Tensor) else None
        device = keywords.get("device") if first is None else first.device
        return torch.device(device or "cpu").type == self.generator.device.type


def _taking_generator(function: Any) -> Any:
    """Return an operation, or its overload that takes a generator, where that is another (``randn``, ``randint``)."""
    name = "generator" if function._overloadname == "default" else f"{function._overloadname}_generator"
    apart = not _takes_generator(function) and name in function.overloadpacket.overloads()
    return getattr(function.overloadpacket, name) if apart else function


def _takes_generator(function: Any) -> bool:
    return any(each.name == "generator" for each in function._schema.arguments)
