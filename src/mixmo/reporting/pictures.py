"""Sections with test images and their predictions."""

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
"""Largest number of images under a heading."""


def images_section(
    data: DataModule,
    wrong: Mapping[str, Samples],
    joint: Predictions,
    networks: Mapping[str, Samples],
    disagree: str,
) -> Section:
    """Show the most confident mistakes, and the images on which networks or members disagree most.

    Args:
        data: The images.
        wrong: Predictions whose mistakes are shown, by heading.
        joint: Predictions of the networks or members that may disagree.
        networks: Predictions of each of these by name.
        disagree: Heading of the images on which they disagree.
    """
    images: dict[str, Sequence[Picture]] = {}
    notes: list[str] = []

    def add(heading: str, numbers: Sequence[int], predictions: Mapping[str, Samples]) -> None:
        def draw() -> list[Picture]:
            return [_picture(data, joint, number, predictions) for number in numbers]

        if not numbers:
            notes.append(f"{heading}: none.")
        else:
            images[heading] = try_to_draw(draw, heading)

    if joint.logits.shape[1] > 1:
        add(disagree, find_disagreements(joint.logits, IMAGES), networks)
    for heading, samples in wrong.items():
        mistakes = _largest(samples.confidence, samples.right == 0, IMAGES // (2 if len(wrong) > 1 else 1))
        add(heading, mistakes, {"predicted": samples})
    return Section("Images", notes=notes, images=images)


def _picture(data: DataModule, joint: Predictions, number: int, predictions: Mapping[str, Samples]) -> Picture:
    lines = [
        f"{name}: {joint.classes[int(samples.predicted[number])]} ({100 * samples.confidence[number]:.0f} %)"
        for name, samples in predictions.items()
    ]
    lines.append(f"true: {joint.classes[int(joint.targets[number])]}")
    return Picture(photo_uri(data.image(number)), lines, f"test image {number}, {'; '.join(lines)}")


def find_disagreements(logits: Tensor, count: int) -> list[int]:
    """Return the numbers of images on which members predict different classes, most uncertain first.

    Example:
        >>> find_disagreements(torch.tensor([[[9.0, 0], [9, 0]], [[0, 1], [1, 0]], [[0, 9], [9, 0]]]), 5)
        [2, 1]
    """
    predicted = logits.argmax(2)
    return _largest(ood_scores(logits)["mutual_information"], (predicted != predicted[:, :1]).any(1), count)


def _largest(values: Tensor, among: Tensor, count: int) -> list[int]:
    order = torch.where(among, values, -1.0).argsort(descending=True)
    return order[: min(count, int(among.sum()))].tolist()
