"""Pairing of images with members: batch repetition and input repetition.

A batch of B mixtures with repetition b has U = B / b distinct images; every member sees each of them b times, in its
own random order (section 3.3 of the paper, after Havasi et al. 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixmo.errors import InputError
from mixmo.seeding import drawing_device


def count_distinct(batch_size: int, batch_repetition: int) -> int:
    """Return U = B / b, the number of distinct images in a batch; refuse a b that does not divide B."""
    if batch_repetition < 1:
        raise InputError(f"batch_repetition is {batch_repetition}; it must be at least 1.")
    if batch_size < batch_repetition:
        raise InputError(
            f"batch_size {batch_size} is smaller than batch_repetition {batch_repetition}; increase it, or repeat less."
        )
    if batch_size % batch_repetition:
        raise InputError(
            f"batch_repetition {batch_repetition} does not divide batch_size {batch_size}; "
            f"use a batch size of {batch_size - batch_size % batch_repetition}, for example."
        )
    return batch_size // batch_repetition


def check_input_repetition(input_repetition: float, num_members: int, name: str = "input_repetition") -> None:
    """Refuse a rho that is out of range or leaves nothing to mix; ``name`` is used in the message."""
    if not 0 <= input_repetition <= 1:
        raise InputError(f"{name} is {input_repetition}; it must be between 0 and 1.")
    if input_repetition == 1 and num_members > 1:
        raise InputError(
            f"{name} is 1: all members would see the same image and could not learn to tell their inputs apart; "
            "use a value below 1 (0 in every published figure)."
        )


def pair(
    num_distinct: int,
    num_members: int = 2,
    batch_repetition: int = 1,
    input_repetition: float = 0.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw which of the U distinct images each member gets in each of the B = U * b mixtures.

    Every member's column is a random permutation of the U images repeated b times. In the last round(rho * B) rows all
    members share one image.

    Args:
        num_distinct: U, the number of distinct images.
        num_members: M.
        batch_repetition: b.
        input_repetition: rho in [0, 1); 0 is the published setting.
        generator: Random generator; ``None`` is the device's global one.
        device: Where to draw; ``None`` is the generator's device, or the CPU.

    Returns:
        Indices (B, M) into the distinct images, int64.

    Raises:
        InputError: if rho or b is out of range.

    Example:
        >>> pairs = pair(4, num_members=2, batch_repetition=2, generator=torch.Generator().manual_seed(0))
        >>> pairs.shape, pairs.sort(0).values[:, 1].tolist()
        (torch.Size([8, 2]), [0, 0, 1, 1, 2, 2, 3, 3])
    """
    count_distinct(num_distinct * batch_repetition, batch_repetition)
    check_input_repetition(input_repetition, num_members)
    device = drawing_device(generator, device)
    batch_size = num_distinct * batch_repetition

    def shuffled(count: int, columns: int) -> Tensor:
        return torch.rand(count, columns, generator=generator, dtype=torch.float32, device=device).argsort(dim=0)

    images = shuffled(batch_size, 1) % num_distinct  # each image b times
    separate = round(batch_size * (1 - input_repetition))
    columns = images.expand(batch_size, num_members)
    return torch.cat([columns[:separate].gather(0, shuffled(separate, num_members)), columns[separate:]])


pair_eagerly = torch.compiler.disable(pair)
"""For a rho that varies: ``torch.compile`` cannot trace sizes that depend on it."""
