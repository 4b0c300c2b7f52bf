"""Every random draw is a function of (seed, step): nothing depends on what was drawn before.

So a run that was stopped goes on exactly as it would have, and two machines agree on a batch.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from mixmo.errors import InputError

Stream = Literal["step", "order", "split", "init", "global", "read", "corruption", "statistics", "estimate", "subset",
                 "test"]  # fmt: skip
STREAMS: dict[Stream, int] = {
    "step": 0, "order": 1, "split": 2, "init": 3, "global": 4, "read": 5, "corruption": 6, "statistics": 7,
    "estimate": 8, "subset": 9, "test": 10,
}  # fmt: skip
"""The number of each stream; a new one takes the next, since other numbers are other draws."""


def seed_for(seed: int, index: int, stream: Stream = "step") -> int:
    """Return a well-mixed 63-bit seed for one step (or epoch) of one stream of draws.

    Args:
        seed: The run's seed, >= 0.
        index: The step, epoch or image the draws belong to, >= 0.
        stream: What the draws are for; streams never share a seed.

    Example:
        >>> seed_for(0, 1) == seed_for(0, 1), seed_for(0, 1) == seed_for(0, 2)
        (True, False)
    """
    state = np.random.SeedSequence([seed, STREAMS[stream], index]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator_for(
    seed: int, index: int, stream: Stream = "step", device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a generator on ``device`` seeded with :func:`seed_for`.

    Example:
        >>> a, b = (torch.rand(2, generator=generator_for(0, 7)) for _ in range(2))
        >>> bool((a == b).all())
        True
    """
    return torch.Generator(device).manual_seed(seed_for(seed, index, stream))


def drawing_device(generator: torch.Generator | None, device: torch.device | str | None = None) -> torch.device:
    """Return where to draw: on the device that is named, else on the generator's, else on the CPU.

    Raises:
        InputError: if the generator is on another kind of device than the one named.

    Example:
        >>> drawing_device(None), drawing_device(None, "meta")
        (device(type='cpu'), device(type='meta'))
    """
    if device is None:
        return torch.device("cpu") if generator is None else generator.device
    device = torch.device(device)
    if generator is not None and generator.device.type != device.type:
        raise InputError(f"the generator draws on {generator.device}, but device is {device}; make it there.")
    return device
