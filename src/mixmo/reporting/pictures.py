"""Test images with their predictions, on pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from markupsafe import Markup

from mixmo.data.module import DataModule
from mixmo.evaluation.evaluate import Samples
from mixmo.evaluation.predictions import Predictions
from mixmo.reporting import html as pages

IMAGES = 12


def confident_mistakes(samples: Samples, count: int) -> list[int]:
    """Return the numbers of the wrong predictions with the largest probabilities, the largest first.

    Example:
        >>> from mixmo.evaluation.evaluate import per_sample
        >>> logits = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
        >>> confident_mistakes(per_sample(logits, torch.tensor([0, 1, 1])), 5)
        [2, 1]
    """
    wrong = samples.right == 0
    order = torch.where(wrong, samples.confidence, -1.0).argsort(descending=True)
    return order[: min(count, int(wrong.sum()))].tolist()


def disagreed(predictions: Predictions, uncertainty: torch.Tensor, count: int) -> list[int]:
    """Return the numbers of images for which members predict different classes, the most uncertain first.

    Args:
        predictions: Of several members.
        uncertainty: (N,).
        count: How many at most.

    Example:
        >>> logits = torch.eye(2)[torch.tensor([[0, 0], [0, 1], [1, 0]])]
        >>> found = Predictions(logits, torch.zeros(3, dtype=torch.long), ["a", "b"])
        >>> disagreed(found, torch.tensor([0.9, 0.1, 0.5]), 5)
        [2, 1]
    """
    predicted = predictions.logits.argmax(2)
    differ = (predicted != predicted[:, :1]).any(1)
    order = torch.where(differ, uncertainty, -1.0).argsort(descending=True)
    return order[: min(count, int(differ.sum()))].tolist()


def image_grid(
    data: DataModule, tested: Predictions, numbers: Sequence[int], lines: Callable[[int], list[str]]
) -> list[dict[str, object]]:
    """Return test images with the lines below them.

    Args:
        data: Whose test set.
        tested: Predictions on it.
        numbers: Which images.
        lines: What was predicted of an image, by its number.

    Raises:
        MissingError: if the dataset is missing.
        InputError: if it is damaged.
    """
    images = [data.image(number) for number in numbers]
    found: list[dict[str, object]] = []
    for number, image in zip(numbers, images, strict=True):
        truth = tested.classes[int(tested.targets[number])]
        text = [*lines(number), f"true: {truth}"]
        found.append({"uri": pages.image_uri(image), "lines": text, "alt": f"test image {number}, {'; '.join(text)}"})
    return found


def grid(
    heading: str, data: DataModule, tested: Predictions, numbers: Sequence[int], lines: Callable[[int], list[str]]
) -> Markup:
    """Return :func:`image_grid` under a heading; a sentence where images cannot be read."""
    return pages.render_safely(lambda: pages.part("images", heading, image_grid(data, tested, numbers, lines)), heading)


def mistakes(name: str, data: DataModule, tested: Predictions, samples: Samples, count: int = IMAGES) -> Markup:
    """Return the most confident mistakes of a network.

    Args:
        name: Of the network; empty where there is one only.
        data: Whose test set.
        tested: Whose names of classes are shown.
        samples: What is known of the network's predictions.
        count: How many at most.
    """
    numbers = confident_mistakes(samples, count)
    heading = f"Most confident mistakes{f' of {name}' if name else ''}"
    if not numbers:
        return pages.part("sentence", f"{heading}: none.")

    def lines(number: int) -> list[str]:
        predicted = tested.classes[int(samples.predicted[number])]
        return [f"predicted: {predicted} ({100 * samples.confidence[number]:.0f} %)"]

    return grid(heading, data, tested, numbers, lines)


def disagreements(
    heading: str, data: DataModule, tested: Predictions, uncertainty: torch.Tensor, who: Mapping[str, Samples]
) -> Markup:
    """Return the images on which networks disagree, with what each predicts.

    Args:
        heading: Above them.
        data: Whose test set.
        tested: Predictions (N, M, K) of the M networks.
        uncertainty: (N,) disagreement, by which images are chosen.
        who: What is known of the networks' predictions, by name.
    """
    numbers = disagreed(tested, uncertainty, IMAGES)
    if not numbers:
        return pages.part("sentence", f"{heading}: none.")

    def lines(number: int) -> list[str]:
        return [
            f"{name}: {tested.classes[int(samples.predicted[number])]} ({100 * samples.confidence[number]:.0f} %)"
            for name, samples in who.items()
        ]

    return grid(heading, data, tested, numbers, lines)
