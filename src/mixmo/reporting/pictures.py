"""Test images with their predictions, on pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mixmo.data.module import DataModule
from mixmo.evaluation.predictions import Predictions
from mixmo.metrics.ood import ood_scores
from mixmo.metrics.samples import Samples
from mixmo.reporting.page import Picture, Section, photo_uri, try_to_draw

IMAGES = 12
"""Images under a heading."""


def images_section(
    data: DataModule,
    wrong: Mapping[str, Samples],
    together: Predictions,
    networks: Mapping[str, Samples],
    disagree: str,
) -> Section:
    """Return the most confident mistakes of networks, and the images on which several disagree most.

    ``wrong`` are the predictions whose mistakes are shown, by heading; ``together`` those of the M networks or members
    that may disagree, of which ``networks`` has each, by name.
    """
    images: dict[str, Sequence[Picture]] = {}
    notes: list[str] = []

    def add(heading: str, numbers: Sequence[int], who: Mapping[str, Samples]) -> None:
        def draw() -> list[Picture]:
            return [_image(data, together, number, who) for number in numbers]

        if not numbers:
            notes.append(f"{heading}: none.")
        else:
            images[heading] = try_to_draw(draw, heading)

    if together.logits.shape[1] > 1:
        add(disagree, find_disagreements(together.logits, IMAGES), networks)
    for heading, samples in wrong.items():
        mistakes = _largest(samples.confidence, samples.right == 0, IMAGES // (2 if len(wrong) > 1 else 1))
        add(heading, mistakes, {"predicted": samples})
    return Section("Images", notes=notes, images=images)


def _image(data: DataModule, tested: Predictions, number: int, who: Mapping[str, Samples]) -> Picture:
    lines = [
        f"{name}: {tested.classes[int(samples.predicted[number])]} ({100 * samples.confidence[number]:.0f} %)"
        for name, samples in who.items()
    ]
    lines.append(f"true: {tested.classes[int(tested.targets[number])]}")
    return Picture(photo_uri(data.image(number)), lines, f"test image {number}, {'; '.join(lines)}")


def find_disagreements(logits: Tensor, count: int) -> list[int]:
    """Return the numbers of images for which members predict different classes, the most uncertain first.

    Example:
        >>> find_disagreements(torch.tensor([[[9.0, 0], [9, 0]], [[0, 1], [1, 0]], [[0, 9], [9, 0]]]), 5)
        [2, 1]
    """
    predicted = logits.argmax(2)
    return _largest(ood_scores(logits)["mutual_information"], (predicted != predicted[:, :1]).any(1), count)


def _largest(values: Tensor, among: Tensor, count: int) -> list[int]:
    order = torch.where(among, values, -1.0).argsort(descending=True)
    return order[: min(count, int(among.sum()))].tolist()
